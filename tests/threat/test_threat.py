"""Hostile clients: attacks worked out by hand, rounds of Q3 under attack, and what honest clients keep."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import plures
from plures.errors import PluresError
from plures.evaluate.scores import score
from plures.evaluate.spec import find_method
from plures.federation import SPLITS, Federation, Split, from_arrays
from plures.method import Combine, Method
from plures.methods import ditto, fedavg
from plures.robust import Median
from plures.run import Execution, Run, Training
from plures.run.checkpoint import snapshot
from plures.tasks import Classification
from plures.threat import (
    ALIE,
    Attack,
    Backdoor,
    Column,
    Corner,
    EdgeCase,
    FreeRider,
    Gaussian,
    InnerProduct,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    Patch,
    RandomLabels,
    Replacement,
    Round,
    SignFlip,
    Threat,
    success,
    threat_of,
)
from plures.threat.uploads import inconspicuous
from problems import EXACT, begun, close, quadratic, scalar, weight

UNIFORM = Method(combine=Combine(weights="uniform"))
HONEST = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)


def known(own: Any = ((3.0,),), seen: torch.Tensor = HONEST, clients: int = 4, key: int = 1) -> Round:
    own = torch.tensor(own, dtype=torch.float64)
    return Round(own, seen, clients, torch.ones(len(own), dtype=torch.float64), float(clients), key)


@pytest.mark.oracle("AT5")
@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (SignFlip(), -3.0),
        (SignFlip(2.0), -6.0),
        (InnerProduct(0.5), -1.0),
        (InnerProduct(2.0), -4.0),
        (ALIE(1.0), -0.6457513111),
        (MinMax(), 0.0),
        (MinMax("unit"), 0.0),
        (MinMax("sign"), 0.0),
        (MinSum(), -1.0),
        (Mimic(), 5.0),
        (FreeRider(), 0.0),
        (Replacement(), 12.0),
        (Replacement(10.0), 30.0),
    ],
)
def test_attacks_on_three_honest_numbers(attack: Attack, expected: float) -> None:
    """Honest changes 0, 1 and 5; the attacker's own is 3, one of four equal clients."""
    assert attack.forge(known()).tolist() == [[close(expected)]]


def test_noise_is_as_strong_as_the_own_change() -> None:
    own = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    found = Gaussian(0.5).forge(known(own.tolist(), own, key=9))
    assert found.square().mean(1).sqrt().tolist() == pytest.approx([1.5, 1.5], rel=0.02)
    assert abs(float((found[0] * own[0]).mean())) < 0.1
    assert FreeRider(0.1).forge(known(own.tolist(), own, key=9)).std().item() == pytest.approx(0.1, rel=0.02)


@pytest.mark.oracle("AT3")
@pytest.mark.parametrize(
    ("clients", "attackers", "z"),
    [
        *((50, 12, 0.336038), (50, 24, 1.426077), (20, 4, 0.157311), (100, 20, 0.285841)),
        *((25, 5, 0.253347), (10, 2, 0.0), (60, 6, 0.092972)),
    ],
)
def test_how_far_a_little_is(clients: int, attackers: int, z: float) -> None:
    assert inconspicuous(clients, attackers) == pytest.approx(z, abs=5e-7)


def attacked(method: Method, threat: Threat | None, rounds: int, **options: Any) -> Run:
    done = Run(
        options.pop("federation", None) or quadratic(),
        scalar(),
        method,
        Training(rounds=rounds, steps=2, batch_size=None, optimizer=begun(fedavg(), 1).training.optimizer),
        execution=options.pop("execution", EXACT),
        threat=threat,
        **options,
    )
    for _ in done.rounds():
        pass
    return done


@pytest.mark.oracle("AT1")
def test_a_flipped_sign_and_a_scaled_change_by_hand() -> None:
    """With equal weights, client a sends -x, or 3 x."""
    flipped, scaled = Threat(("a",), SignFlip()), Threat(("a",), Replacement(3.0))
    for rounds, one, three in ((1, 0.7633333333, 0.51), (2, 1.3205666667, 0.7531), (3, 1.727347, 0.8689776667)):
        assert weight(attacked(UNIFORM, flipped, rounds)) == pytest.approx(one, abs=1e-6)
        assert weight(attacked(UNIFORM, scaled, rounds)) == pytest.approx(three, abs=1e-6)


@pytest.mark.oracle("AT2")
def test_a_replaced_model_is_exactly_the_attackers() -> None:
    """Clients b and c are at their optimum, 0, and stand still; a's change of -0.19 counts six sixths."""
    still = quadratic(optima=(-1.0, 0.0, 0.0))
    assert weight(attacked(fedavg(), Threat(("a",), Replacement()), 1, federation=still)) == close(-0.19)
    assert weight(attacked(fedavg(), None, 1, federation=still)) == close(-0.19 / 6)


def test_an_attack_has_a_first_and_a_last_round() -> None:
    early, late = Threat(("a",), SignFlip(), stop=1), Threat(("a",), SignFlip(), start=2)
    plain = [weight(attacked(UNIFORM, None, rounds)) for rounds in (1, 2)]
    assert weight(attacked(UNIFORM, late, 1)) == plain[0]
    assert weight(attacked(UNIFORM, late, 2)) != pytest.approx(plain[1])
    first = 0.7633333333
    again = sum(b + (1 - 0.1 * a) ** 2 * (first - b) for a, b in ((1, -1), (2, 0.5), (4, 3))) / 3
    assert weight(attacked(UNIFORM, early, 2)) == pytest.approx(again, abs=1e-6)


@pytest.mark.oracle("AT4")
def test_attackers_know_what_they_may() -> None:
    """The mean of all honest changes (0.18 and 1.92), of the colluders' own, and of one's own alone."""
    three = ("a", "b")
    for knows, sent in (("all", [-1.92] * 2), ("colluders", [0.005] * 2), ("own", [0.19, -0.18])):
        threat = Threat(three, InnerProduct(1.0), knows=knows)
        expected = (sum(sent) + 1.92) / 3
        assert weight(attacked(UNIFORM, threat, 1)) == close(expected), knows


@pytest.mark.oracle("AT0")
@pytest.mark.parametrize("attack", [SignFlip(), ALIE(), Mimic()], ids=repr)
def test_without_attackers_the_run_is_the_honest_one_bit_for_bit(attack: Attack) -> None:
    plain, none = attacked(ditto(), None, 3), attacked(ditto(), Threat(0.0, attack, LabelFlip()), 3)
    assert all(torch.equal(t, snapshot(none)[k]) for k, t in snapshot(plain).items())


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_and_backends_agree(chunk: int) -> None:
    threat = Threat(("a",), InnerProduct(0.5))
    whole = weight(attacked(fedavg(), threat, 3))
    for backend in ("loop", "vmap"):
        found = attacked(fedavg(), threat, 3, execution=Execution(backend, chunk, False, "float64"))
        assert weight(found) == close(whole)


def test_a_median_does_not_follow_one_attacker() -> None:
    threat = Threat(("a",), SignFlip(1000.0))
    assert weight(attacked(UNIFORM, threat, 1)) > 60
    assert weight(attacked(UNIFORM + Method(combine=Combine(reduce=Median())), threat, 1)) == close(1.92)


def test_the_wire_bounds_attackers_too() -> None:
    """Clipped to 0.1, the uploads of b and c move by 0.1 each, and the attacker's by -0.1 at most."""
    method = find_method("fedavg+clip(norm=0.1)")() + UNIFORM
    found = weight(attacked(method, Threat(("a",), SignFlip(-1000.0)), 1))
    assert found == pytest.approx(0.1 / 3, abs=1e-6)


def test_attackers_judge_nothing() -> None:
    done = attacked(fedavg(), Threat(("a",), SignFlip()), 1)
    assert done.federation.splits["test"].sizes.tolist() == [0, 20, 30]
    assert done.federation.splits["validation"].sizes.tolist() == [0, 20, 30]
    assert done.federation.splits["train"].sizes.tolist() == [10, 20, 30]
    values = score(done, "test").values["rmse"]
    assert [value == value for value in values] == [False, True, True]


def people(classes: int = 3) -> Any:
    """Four clients whose class is where the input points."""
    random = torch.Generator().manual_seed(5)
    y = torch.arange(240) % classes
    x = 3 * torch.nn.functional.one_hot(y, classes).float() + 0.5 * torch.randn(240, classes, generator=random)
    x = torch.cat([x, torch.zeros(240, 1)], 1)
    return from_arrays(x.numpy(), y.numpy(), [f"c{i // 60}" for i in range(240)], standardize=False)


def test_labels_are_flipped_in_training_alone() -> None:
    clean, threat = people(), Threat(("c1",), poison=LabelFlip())
    bad = threat.poisoned(clean)
    for place, name in enumerate(clean.clients):
        before, after = (f.targets[f.splits["train"][place]] for f in (clean, bad))
        assert torch.equal(after, 2 - before if name == "c1" else before)
        inputs, again = (f.inputs[f.splits["train"][place]] for f in (clean, bad))
        assert torch.equal(inputs, again)
    assert torch.equal(bad.targets[: len(clean.targets)], clean.targets)
    random = Threat(("c1",), poison=RandomLabels(), seed=3).poisoned(clean)
    drawn = random.targets[random.splits["train"][1]]
    assert not torch.equal(drawn, clean.targets[clean.splits["train"][1]])
    assert drawn.min() >= 0
    assert drawn.max() <= 2


def test_a_share_of_attackers_is_drawn_by_seed() -> None:
    names = tuple(f"c{i}" for i in range(10))
    assert len(Threat(0.3, SignFlip()).hostile(names)) == 3
    assert Threat(0.3, SignFlip(), seed=1).hostile(names) != Threat(0.3, SignFlip(), seed=2).hostile(names)


def test_a_backdoor_opens_for_its_trigger_alone() -> None:
    """Half of the attacker's examples have 4 in the last entry and class 0; the honest leave that weight at 0."""
    door = Backdoor(Patch(((3,),), 4.0), target=0)
    clean, threat = people(), Threat(("c1",), poison=door)
    bad = threat.poisoned(clean)
    own, before = bad.splits["train"][1], clean.targets[clean.splits["train"][1]]
    marked = bad.inputs[own][:, 3] == 4
    assert int(marked.sum()) == round(len(own) / 2)
    assert torch.equal(bad.targets[own], torch.where(marked, 0, before))

    def trained(threat: Threat | None) -> Run:
        model = lambda: torch.nn.Linear(4, 3)  # noqa: E731
        done = Run(clean, model, fedavg(), Training(rounds=20, steps=5), execution=EXACT, threat=threat)
        for _ in done.rounds():
            pass
        return done

    honest, open_ = trained(None), trained(Threat(("c1",), Replacement(3.0), door))
    assert all(rate < 0.5 for rate in success(honest, door).values())
    rates = success(open_, door)
    assert rates.keys() == {"c0", "c2", "c3"}
    assert all(rate > 0.9 for rate in rates.values())
    assert all(value > 0.9 for value in score(open_, "test").values["accuracy"] if value == value)
    assert success(open_, door, ["c2"]) == {"c2": rates["c2"]}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Threat(1.0, SignFlip()), "attackers=1.0: give names of clients, a number, or a share below 1"),
        (lambda: Threat(0.5), "this threat does nothing"),
        (lambda: Threat(0.5, poison=LabelFlip(), start=3), "leave out start and stop"),
        (lambda: Threat(0.5, SignFlip(), start=3, stop=2), "start=3, stop=2: give rounds from 1"),
        (lambda: Threat(("z",), SignFlip()).hostile(("a", "b")), "attackers: no client 'z'; there are a, b"),
        (lambda: Threat(("a", "b"), SignFlip()).hostile(("a", "b")), "all 2 clients are attackers"),
        (
            lambda: Threat(("a",), poison=LabelFlip()).poisoned(quadratic()),
            "LabelFlip does not fit Q3: it needs classes",
        ),
        (lambda: inconspicuous(3, 2), "there is no z to compute: give z="),
        (lambda: Patch(((0,),), 1.0).put(torch.zeros(2, 3, 3)), "covers 1 dimensions and inputs have 2"),
        (lambda: Patch(((7,),), 1.0).put(torch.zeros(2, 3)), "give some from 0 to 2"),
        (lambda: Backdoor(Patch(((0,),), 1.0), share=0), "share=0: give the poisoned part"),
        (
            lambda: Threat(("c1",), poison=Backdoor(Patch(((0,),), 1.0), target=9)).poisoned(people()),
            "target=9; classes have the numbers 0 to 2",
        ),
    ],
)
def test_impossible_threats_are_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(PluresError, match=said):
        make()


def test_triggers_are_fitted_to_the_data() -> None:
    """Four inputs, the last always 0: a trigger there has no room above it, one in the corner takes the largest."""
    data = dataclasses.replace(people(), columns=("a", "b", "c", "d"))
    rows = data.inputs[data.splits["train"].rows]
    assert Corner(2).fitted(data) == Corner(2, float(rows[:, 2:].max()))
    assert Corner(2, 1.0).fitted(data) == Corner(2, 1.0)
    assert Column("b", 3.0).fitted(data) == Patch(((1,),), 3.0)
    assert Column("b").fitted(data) == Patch(((1,),), float(rows[:, 1].max()))
    with pytest.raises(PluresError, match="no input column 'height' in"):
        Column("height").fitted(data)
    picture = Corner(2, 1.0).put(torch.zeros(1, 3, 4, 5))
    assert picture[0, :, 2:, 3:].eq(1).all()
    assert picture.sum() == 3 * 4
    assert Corner(9, 1.0).put(torch.zeros(2, 3)).eq(1).all()


def test_a_distributed_trigger_is_put_piece_by_piece_and_tried_whole() -> None:
    """Xie et al. 2020: together the pieces are the trigger, no entry is in two, and attackers take them in turn."""
    door = Backdoor(Corner(2, 1.0), parts=3)
    blank = torch.zeros(1, 3, 3)
    pieces = [door.of(place).trigger.put(blank) for place in range(4)]
    assert [int(piece.sum()) for piece in pieces] == [2, 1, 1, 2]
    assert torch.equal(pieces[0], pieces[3])
    assert torch.equal(sum(pieces[:3]), door.trigger.put(blank))
    assert torch.equal(door.tried(blank, torch.tensor([1]))[0], door.trigger.put(blank))
    data = people()
    bad = Threat(("c0", "c1"), poison=Backdoor(Patch(((2, 3),), 7.0), parts=2)).poisoned(data)
    for place, entry in ((0, 2), (1, 3)):
        own = bad.inputs[bad.splits["train"][place]]
        assert own[:, entry].eq(7).any()
        assert not own[:, 5 - entry].eq(7).any()


def test_edge_cases_are_the_rare_examples_of_other_classes() -> None:
    """One entry, with 0 of class 0 and 1 to 10 of class 1: its mean is 5.5, and 1 and 10 are farthest from it."""
    x = torch.cat([torch.zeros(10), torch.arange(1.0, 11.0)])[:, None]
    y = torch.tensor([0] * 10 + [1] * 10)
    random = torch.Generator()
    fitted = EdgeCase(rare=0.2).fitted(single(x, y))
    inputs, labels = fitted.examples(x, y, 2, random)
    assert torch.equal(inputs, x)
    assert (labels != y).nonzero().flatten().tolist() == [10, 19]
    assert fitted.tried(x[10:], y[10:])[1].nonzero().flatten().tolist() == [0, 9]
    with pytest.raises(PluresError, match="rare=1: give the part of the examples"):
        EdgeCase(rare=1)


def single(x: torch.Tensor, y: torch.Tensor) -> Any:
    """A federation whose only client has these examples for everything."""
    split = Split.of([torch.arange(len(y))])
    return Federation(
        name="one",
        task=Classification(("0", "1")),
        inputs=x,
        targets=y,
        clients=("a",),
        splits=dict.fromkeys(SPLITS, split),
    )


def test_a_backdoor_is_tried_on_own_and_received_models() -> None:
    """With a personal head there is no whole model to receive; with FedAvg both are the same."""
    door = Backdoor(Patch(((3,),), 4.0))
    threat = Threat(("c1",), Replacement(3.0), door)
    net = lambda: plures.with_roles(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)), head="1")  # noqa: E731
    for method, whole in (("fedavg", True), ("fedrep", False), ("ditto", True)):
        made = find_method(method)()
        done = Run(people(), net, made, Training(rounds=2, steps=2), execution=EXACT, threat=threat)
        for _ in done.rounds():
            pass
        own, received = threat.success(done), threat.success(done, shared=True)
        assert own.keys() == {"c0", "c2", "c3"}
        assert received.keys() == (own.keys() if whole else set())
        assert method != "fedavg" or own == received
    assert Threat(("c1",), SignFlip()).success(done) == {}


def test_threats_by_name_are_the_objects() -> None:
    assert threat_of("sign_flip") == Threat(0.2, SignFlip())
    assert threat_of("alie(z=1)", 3, 2, "own") == Threat(3, ALIE(1.0), knows="own", start=2)
    assert threat_of("label_flip", ["b"]) == Threat(("b",), poison=LabelFlip())
    assert threat_of("backdoor(size=2,target=1)") == Threat(0.2, poison=Backdoor(Corner(2), target=1))
    assert threat_of("column_backdoor(age,share=1)+replacement").poison == Backdoor(Column("age"), share=1.0)
    assert threat_of("edge_case(rare=0.2)") == Threat(0.2, poison=EdgeCase(0.2))
    assert threat_of("label_flip+min_max(sign)") == Threat(0.2, MinMax("sign"), LabelFlip())
    for text, said in (
        ("sign_flop", "no attack 'sign_flop'; did you mean 'sign_flip'"),
        ("sign_flip(z=1)", "attack 'sign_flip'"),
        ("sign_flip+mimic", "two of these change what is sent; leave one of them out"),
        ("label_flip+random_labels", "two of these change the data"),
    ):
        with pytest.raises(PluresError, match=said):
            threat_of(text)


def test_attackers_are_a_number_too() -> None:
    names = tuple(f"c{i}" for i in range(10))
    assert Threat(3, SignFlip()).hostile(names) == Threat(0.3, SignFlip()).hostile(names)
    assert Threat(0, SignFlip()).hostile(names) == []
    with pytest.raises(PluresError, match=r"attackers=0\.04 of 10 clients is nobody: give a larger share"):
        Threat(0.04, SignFlip()).hostile(names)
    with pytest.raises(PluresError, match="all 10 clients are attackers"):
        Threat(11, SignFlip()).hostile(names)
