"""What running statistics follow, and how they are combined: every method, compared with statistics of the data."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from plures.errors import PluresError
from plures.evaluate.scores import score
from plures.federation import SPLITS, Federation, Split
from plures.method import (
    SGD,
    Arrived,
    Combine,
    Generated,
    Leaves,
    Method,
    Mixed,
    Personal,
    Phase,
    Reducer,
    Setting,
    Shared,
    axpy,
    buffers,
    dot,
    gradient,
    interpolate,
    squared_distance,
    zeros_like,
)
from plures.methods import METHODS, apfl, fedavg, lora, pfedme, wise_ft
from plures.models import Marked, Network, with_roles
from plures.models.residual import SqueezeExcitation
from plures.run import Execution, Run, Training, onboard
from plures.run.checkpoint import restore, snapshot
from plures.run.cost import traffic
from plures.tasks import Classification

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")

SIZES, MEANS, EXAMPLES, UNIFORM = (10, 20, 30), (0.0, 4.0, 10.0), 380 / 60, 14 / 3
"""Three clients: training examples, means of their inputs, and the mean of these, by examples and over clients."""
STACKED, ALONE = Execution("vmap", 3, False, "float64"), Execution("loop", 3, False, "float64")
FIXED = {"lora": 0, "hetlora": 0, "constant": 0}
"""Methods whose statistics are those of a pretrained base, with the number of passes that it has seen."""


def clients(means=MEANS, sizes=SIZES, names="abc") -> Federation:
    """Each client's inputs have exactly its mean and the variance 4 (unbiased) in every feature, on every split."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for mean, size in zip(means, sizes, strict=True):
        x = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        parts.append(mean + 2 * (x - x.mean(0)) / x.std(0))
    inputs = torch.cat([*parts, torch.full((6, 4), 4.0, dtype=torch.float64)])
    own = Split.of(list(torch.arange(sum(sizes)).split(list(sizes))))
    return Federation(
        name="shifted",
        task=Classification(("0", "1")),
        inputs=inputs,
        targets=torch.arange(len(inputs)) % 2,
        clients=tuple(names),
        splits=dict.fromkeys(SPLITS, own),
        metadata={
            "group": tuple("one" for _ in names),
            "completeness": tuple(1.0 for _ in names),
            "reliability": tuple(1.0 for _ in names),
        },
        public=torch.arange(sum(sizes), len(inputs)),
    )


def network(momentum: float) -> nn.Module:
    """Batch normalisation of the inputs themselves, then a body with the parts that methods need, and a head."""
    first = nn.BatchNorm1d(4, momentum=momentum)
    body = first, nn.Linear(4, 4), nn.ReLU(), nn.Unflatten(1, (-1, 1, 1)), SqueezeExcitation(4), nn.Flatten()
    return with_roles(nn.Sequential(*body, nn.Linear(4, 2)), head="6", se="4")


def train(method, federation, momentum, *, rounds=2, steps=2, execution=STACKED, batch_size=None, model=network) -> Run:
    training = Training(rounds=rounds, steps=steps, batch_size=batch_size, optimizer=SGD(0.01))
    done = Run(federation, partial(model, momentum), method, training, execution=execution)
    for _ in done.rounds():
        pass
    return done


def statistics(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """Mean, variance and number of batches of the first layer, of every slot that clients predict with."""
    found = {}
    for slot, leaves in run.deployed(list(range(len(run.federation)))).items():
        for path in leaves:
            if path.endswith("running_mean"):
                stem = path.removesuffix("running_mean")
                kinds = ("running_mean", "running_var", "num_batches_tracked")
                found[f"{slot}/{stem}"] = {kind: leaves[stem + kind] for kind in kinds}
    return found


OPTIONS = {"fedot": {"map_lr": 0.0}, "wise_ft": {"alpha": 0.5}}
"""With maps that stay the identity, and a mixture that is one."""


def made(name: str) -> Method:
    return METHODS[name](**OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mocha"])
def test_statistics_are_those_of_the_inputs_whatever_the_method(name):
    """Where all batches have mean 4 and variance 4, n passes leave the mean 4 (1 - 0.9^n), the variance 4 - 3 * 0.9^n.

    This holds for the shared model, personal models, mixtures, and newcomers; n is what the layer counts.
    """
    homogeneous = clients((4.0, 4.0, 4.0))
    done = train(made(name), homogeneous, 0.1)
    guest = onboard(done, clients((4.0,), (10,), "z"), visits=1)
    for run in (done, guest):
        found = statistics(run)
        assert found
        for slot, seen in found.items():
            n = seen["num_batches_tracked"]
            assert n.dtype == torch.int64
            left = (0.9 ** n.to(torch.float64)).unsqueeze(-1).expand_as(seen["running_mean"])
            torch.testing.assert_close(seen["running_mean"], 4 * (1 - left), atol=1e-9, rtol=0, msg=slot)
            torch.testing.assert_close(seen["running_var"], 4 - 3 * left, atol=1e-9, rtol=0, msg=slot)
        passes = max(int(seen["num_batches_tracked"].max()) for seen in found.values())
        assert passes == 0 if name in FIXED else passes >= 2


OWN = (
    *("local", "ditto", "apfl", "pfedme", "mrmtl", "fedamp", "fedu", "l2gd", "fedfomo", "apple", "fedproto"),
    *("lgfedavg", "fedavg_ft", "wise_ft", "reptile", "perfedavg", "fedbn", "self_distillation", "fedbabu", "dapper"),
    *("pfedhn", "cold_start"),
)
BY_EXAMPLES = (
    *("fedavg", "fedprox", "fedavgm", "fedopt", "fedper", "fedrep", "fedrod", "fedhome", "fedsimclr", "moon", "fedala"),
    *("knnper", "temperature", "threshold", "prior_shift", "ewc", "debias", "quality", "personal_moe", "personal_se"),
    *("community", "metadata_clusters", "hierfavg", "digital_twin", "hypcluster", "fedem", "mapper"),
)
UNIFORMLY = ("feddyn", "scaffold", "ifca")


@pytest.mark.parametrize("name", OWN)
def test_a_personal_predictor_has_the_statistics_of_its_client(name):
    """With momentum 1 only the last pass matters: the client's own mean, whatever was mixed, pulled or averaged."""
    done = train(made(name), clients(), 1.0)
    (seen,) = (seen for slot, seen in statistics(done).items() if slot.startswith("model/"))
    expected = torch.tensor(MEANS, dtype=torch.float64).unsqueeze(1).expand(3, 4)
    torch.testing.assert_close(seen["running_mean"], expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(seen["running_var"], torch.full((3, 4), 4.0, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", [*BY_EXAMPLES, *UNIFORMLY, "pfedme", "apfl", "ditto", "mrmtl", "reptile", "qffl"])
def test_a_shared_model_has_the_mean_statistics_of_its_clients(name):
    """One full batch of each client, momentum 1: the mean of their means, by examples or over clients."""
    done = train(made(name), clients(), 1.0, rounds=1, steps=1)
    shared = done.states([0])["model"]
    (path,) = [path for path in shared if path.endswith("0.running_mean")][:1]
    if name == "qffl":
        weight = done.states([0, 1, 2])["weight"]["weight"]
        expected = float((weight * torch.tensor(MEANS)).sum() / weight.sum())
    else:
        expected = UNIFORM if name in (*UNIFORMLY, "pfedme", "mrmtl") else EXAMPLES
    torch.testing.assert_close(shared[path][0], torch.full((4,), expected, dtype=torch.float64), atol=1e-9, rtol=0)
    assert int(shared[path.replace("running_mean", "num_batches_tracked")][0]) == (5 if name == "hypcluster" else 1)


# Mixtures and models that nobody trains ---------------------------------------------------------------------------


def deep(momentum: float) -> nn.Module:
    """Batch normalisation behind a layer that learns, so that its statistics depend on the weights."""
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=momentum), nn.ReLU(), nn.Linear(5, 2)
    return with_roles(nn.Sequential(*layers), head="3")


@pytest.mark.parametrize(("method", "slot"), [(pfedme(lr=0.0), "model"), (apfl(0.3), "personal")])
def test_statistics_of_hidden_layers_are_those_of_the_model_itself(method, slot):
    """Where a learning rate of 0 keeps the weights, the statistics are means of what the layer reads, by hand."""
    federation = clients((0.0, 4.0, 10.0))
    training = Training(rounds=1, steps=1, batch_size=None, optimizer=SGD(0.0))
    done = Run(federation, partial(deep, 1.0), method, training, execution=STACKED)
    done.step()
    for client, rows in enumerate(federation.splits["train"]):
        leaves = {path: t[0] for path, t in done.states([client])[slot].items()}
        hidden = federation.inputs[rows] @ leaves["0.weight"].T + leaves["0.bias"]
        own = hidden.mean(0)
        if slot == "model":
            every = [federation.inputs[r] @ leaves["0.weight"].T + leaves["0.bias"] for r in federation.splits["train"]]
            own = torch.stack([h.mean(0) for h in every]).mean(0)
        torch.testing.assert_close(leaves["1.running_mean"], own, atol=1e-9, rtol=0)


def test_a_proximal_pull_does_not_move_statistics():
    """Inputs of mean 4 and a pull of 15: after k steps both models have 4 (1 - 0.9^k)."""
    done = train(pfedme(15.0), clients((4.0, 4.0, 4.0)), 0.1, rounds=5, steps=4)
    states = done.states([0, 1, 2])
    for slot in ("model", "personal"):
        torch.testing.assert_close(
            states[slot]["0.running_mean"],
            torch.full((3, 4), 4 * (1 - 0.9**20), dtype=torch.float64),
            atol=1e-9,
            rtol=0,
        )
        assert states[slot]["0.num_batches_tracked"].tolist() == [20] * 3


def test_ends_of_a_mixture_are_its_models():
    """With no weight on its own model, a client predicts with the shared one, including its statistics."""
    plain = train(fedavg(), clients(), 0.5)
    expected = plain.predictors([0, 1, 2])
    for method in (apfl(0.0), wise_ft(alpha=0.0)):
        done = train(method, clients(), 0.5)
        for path, value in done.predictors([0, 1, 2]).items():
            assert torch.equal(value, expected[path]), path


# The arithmetic -------------------------------------------------------------------------------------------------------


def test_arithmetic_leaves_buffers_and_frozen_leaves_alone():
    held = frozenset({"mean", "count", "frozen"})

    def leaves(w: float, mean: float, count: int) -> Marked:
        values = {"w": torch.tensor(w), "mean": torch.tensor(mean), "frozen": torch.tensor(mean)}
        return Marked(values | {"count": torch.tensor(count)}, held)

    a, b = leaves(1.0, 5.0, 3), leaves(4.0, 9.0, 8)
    assert float(squared_distance(a, b)) == 9.0
    assert float(squared_distance(a, dict(b))) == 9.0
    assert float(dot(a, b)) == 4.0
    assert {k: float(t) for k, t in axpy(a, 2.0, b).items()} == {"w": 9.0, "mean": 5.0, "frozen": 5.0, "count": 3.0}
    assert {k: float(t) for k, t in interpolate(a, b, 0.5).items()} == {
        "w": 2.5,
        "mean": 5.0,
        "frozen": 5.0,
        "count": 3.0,
    }
    for nothing in (0.0, torch.tensor(0.0)):
        assert {k: float(t) for k, t in interpolate(a, b, nothing).items()} == {k: float(t) for k, t in b.items()}
    assert zeros_like(a).keys() == {"w"}
    assert float(squared_distance(axpy(a, 1.0, b), a)) == 16.0


def test_a_penalty_counts_parameters_alone():
    """The distance that an objective sees is that of the weights; the received model differs in statistics too."""
    seen = []

    def far(x, received, batch):
        distance = squared_distance(x.model, received.model)
        by_hand = sum(
            (x.model[k] - received.model[k]).square().sum() for k in x.model if "running" not in k and "num" not in k
        )
        seen.append((float(distance.detach()), float(by_hand.detach())))
        return batch.loss(x.model) + distance

    train(Method(schedule=(Phase(objective=far),)), clients(), 1.0, execution=ALONE)
    assert any(by_hand > 0 for _, by_hand in seen)
    assert all(distance == pytest.approx(by_hand, rel=1e-12) for distance, by_hand in seen)


# The server -----------------------------------------------------------------------------------------------------------


def test_a_reducer_sees_parameters_alone():
    """The reducer gets 4 + 4 (normalisation), 20 (linear) and so on; statistics are averaged separately."""
    module = network(1.0)
    count, sizes = sum(p.numel() for p in module.parameters()), []

    class First(Reducer):
        def reduce(self, uploads: torch.Tensor, arrived: Arrived) -> tuple[torch.Tensor, Leaves]:
            sizes.append(uploads.shape[1])
            return uploads[0], {}

    done = train(Method(combine=Combine(reduce=First())), clients(), 1.0, rounds=1, steps=1)
    assert sizes == [count]
    mean = done.states([0])["model"]["0.running_mean"][0]
    torch.testing.assert_close(mean, torch.full((4,), EXAMPLES, dtype=torch.float64), atol=1e-9, rtol=0)
    assert int(done.states([0])["model"]["0.num_batches_tracked"][0]) == 1


def entries(x):
    """A weight for every entry of every parameter."""
    return {k: torch.ones_like(t) for k, t in x.model.items() if "running" not in k and "num" not in k}


def test_weights_of_single_entries_and_a_reducer_exclude_each_other():
    rule = Combine(entries, reduce=Reducer())
    with pytest.raises(PluresError, match=r"combine of 'model'.*single entries.*leave reduce out"):
        Method(combine=rule).bind(Network(network(1.0)), Setting.of(clients()))
    missing = Combine(lambda x: {k: t for k, t in entries(x).items() if k != "0.bias"})
    with pytest.raises(PluresError, match=r"the weights have no entry for 'model/0.bias'"):
        Method(combine=missing).bind(Network(network(1.0)), Setting.of(clients()))


def test_weights_of_single_entries_leave_statistics_to_the_examples():
    done = train(Method(combine=Combine(entries)), clients(), 1.0, rounds=1, steps=1)
    plain = train(fedavg("uniform"), clients(), 1.0, rounds=1, steps=1)
    left, right = done.states([0])["model"], plain.states([0])["model"]
    mean = left["0.running_mean"][0]
    torch.testing.assert_close(mean, torch.full((4,), EXAMPLES, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(left["1.weight"], right["1.weight"], atol=1e-12, rtol=0)


def test_a_mixing_matrix_gets_and_mixes_parameters_alone():
    """Even rows that subtract models leave every client the statistics of its own inputs."""
    widths = []

    def matrix(models, cohort):
        widths.append(models.shape[1])
        return torch.tensor([[2.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)

    done = train(Method(layout={"model": Mixed(matrix)}), clients(), 1.0, rounds=1, steps=1)
    assert widths == [sum(p.numel() for p in network(1.0).parameters())]
    assert done.states([0, 1, 2])["model"]["0.running_mean"][:, 0].tolist() == pytest.approx(MEANS, abs=1e-9)


def test_a_generator_does_not_make_statistics():
    """They are the mean, by examples, of what the clients sent."""
    method = Method(layout={"model": Generated(hidden=(4,))})
    done = train(method, clients(), 1.0, rounds=1, steps=1)
    mean = done.states([0, 1, 2])["model"]["0.running_mean"]
    torch.testing.assert_close(mean, torch.full((3, 4), EXAMPLES, dtype=torch.float64), atol=1e-9, rtol=0)
    assert done.states([0])["model"]["0.num_batches_tracked"].tolist() == [1]


def test_counts_of_batches_are_means_of_whole_numbers():
    """Batches of 10: the clients make 1, 2 and 3 steps, by examples (10 + 40 + 90) / 60 = 2.33 of them, which is 2."""
    training = Training(rounds=1, epochs=1, batch_size=10, optimizer=SGD(0.01))
    done = Run(clients(), partial(network, 0.1), fedavg(), training, execution=STACKED)
    done.step()
    assert done.states([0])["model"]["0.num_batches_tracked"].tolist() == [2]
    assert done.states([0])["model"]["0.num_batches_tracked"].dtype == torch.int64


def test_controls_and_memories_hold_parameters_alone():
    """SCAFFOLD sends the model and a control of its parameters: two thirds of 12 floats and a count are not twice."""
    setting = Setting.of(clients())
    bound = METHODS["scaffold"]().bind(Network(network(0.1)), setting)
    parameters = sum(p.numel() * 4 for p in network(0.1).parameters())
    statistics = 2 * 4 * 4 + 8
    assert traffic(bound)[0] == 2 * parameters + statistics
    assert not any("running" in path for path in (*bound.initial["control"], *bound.initial["own_control"]))


def test_a_run_with_statistics_goes_on_from_a_checkpoint():
    whole, half = (train(apfl(0.3), clients(), 0.1, rounds=rounds) for rounds in (4, 2))
    resumed = train(apfl(0.3), clients(), 0.1, rounds=4)
    restore(resumed, snapshot(half))
    for _ in resumed.rounds():
        pass
    for key, value in snapshot(whole).items():
        assert torch.equal(value, snapshot(resumed)[key]), key


# Statistics inside a part ---------------------------------------------------------------------------------------------


def headed(momentum: float) -> nn.Module:
    """Batch normalisation inside the head, on the output of the body (which changes nothing)."""
    body = nn.Linear(4, 4, bias=False)
    nn.init.eye_(body.weight)
    return with_roles(
        nn.Sequential(body, nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 2))), head="1"
    )


@pytest.mark.parametrize("execution", [STACKED, ALONE], ids=["vmap", "loop"])
def test_a_head_called_by_itself_has_statistics_of_its_own(execution):
    """FedRoD's personal head reads the representation of the first step: the client's inputs themselves."""
    federation = clients()
    done = train(METHODS["fedrod"](), federation, 1.0, rounds=1, steps=1, execution=execution, model=headed)
    own = done.states([0, 1, 2])["personal"]["1.0.running_mean"]
    torch.testing.assert_close(own[:, 0], torch.tensor(MEANS, dtype=torch.float64), atol=1e-9, rtol=0)
    shared = done.states([0])["model"]["1.0.running_mean"][0]
    torch.testing.assert_close(shared, torch.full((4,), EXAMPLES, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_frozen_head_still_learns_what_it_reads():
    """FedBABU keeps the head's weights, not the statistics of its inputs."""
    done = train(METHODS["fedbabu"](epochs=0), clients(), 1.0, rounds=1, steps=1, model=headed)
    leaves = done.predictors([0])
    torch.testing.assert_close(leaves["1.0.running_mean"][0, 0], torch.tensor(EXAMPLES).double(), atol=1e-6, rtol=0)
    assert torch.equal(leaves["1.1.weight"][0], done.bound.initial["model"]["1.1.weight"])


def test_a_base_that_never_changes_uses_its_statistics_in_training():
    """LoRA's base normalises with its given statistics, so that training and prediction are the same function."""
    losses = []

    def trained_base(momentum: float) -> nn.Module:
        module = deep(momentum)
        module[1].running_mean.fill_(3.0)
        module[1].running_var.fill_(9.0)
        return module

    def spy(x, received, batch):
        trained, predicted = (batch.problem.network(x.model, batch.inputs, train=t)[0] for t in (True, False))
        losses.append((float(trained.detach().sum()), float(predicted.detach().sum())))
        return batch.loss(x.model)

    method = lora("shared", heads="shared")
    (phase,) = method.schedule
    watched = replace(method, schedule=(replace(phase, objective=spy),))
    done = train(watched, clients(), 0.1, execution=ALONE, model=trained_base)
    assert losses
    assert all(one == pytest.approx(two, abs=1e-12) for one, two in losses)
    (path,) = [path for path in done.bound.initial["model"] if path.endswith("running_mean")]
    assert done.predictors([0])[path][0].tolist() == [3.0] * 5


def test_a_phase_of_buffers_estimates_statistics_anew():
    """No gradient step, only forward passes: the weights stay, the statistics become the client's."""
    method = Method(layout={buffers: Personal(), "model": Shared()}, schedule=(Phase(buffers),))
    done = train(method, clients(), 1.0, rounds=1, steps=1)
    states = done.states([0, 1, 2])["model"]
    assert states["0.running_mean"][:, 0].tolist() == pytest.approx(MEANS, abs=1e-9)
    assert torch.equal(states["1.weight"][2], done.bound.initial["model"]["1.weight"])


class Assigned(nn.Module):
    """Subtracts a moving mean of its inputs, which it assigns instead of changing it, and counts all passes."""

    mean: torch.Tensor

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside, self.head = inside, nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.passes += 1
        if self.training and self.inside:
            self.mean.copy_(0.9 * self.mean + 0.1 * x.mean(0).detach())
        elif self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.head(x - self.mean)


@pytest.mark.parametrize("execution", [STACKED, ALONE], ids=["stacked", "alone"])
@pytest.mark.parametrize("name", ["fedavg", "apfl"])
def test_buffers_that_a_module_assigns_follow_its_passes(name, execution):
    """``self.mean = ...`` is kept as ``self.mean.copy_(...)`` is; passes that only predict leave nothing behind."""
    federation, found = clients((4.0, 4.0, 4.0)), []
    for inside in (True, False):
        done = train(made(name), federation, inside, execution=execution, model=Assigned)
        score(done, "test")
        deployed = done.deployed([0, 1, 2])
        for leaves in deployed.values():
            torch.testing.assert_close(leaves["mean"], torch.full((3, 4), 4 * (1 - 0.9**4), dtype=torch.float64))
            assert leaves["passes"].tolist() == [4, 4, 4]
        found.append(deployed)
    for slot, leaves in found[0].items():
        torch.testing.assert_close(leaves, found[1][slot], rtol=0, atol=1e-12)


@pytest.mark.parametrize("execution", [STACKED, ALONE], ids=["stacked", "alone"])
def test_an_objective_may_differentiate_and_map_a_model(execution):
    """A step of MAML by ``torch.func.grad`` and ``tree_map`` is the step by the library's own functions."""

    def step(x, received, batch):
        grads = torch.func.grad(batch.loss)(x.model)
        return batch.loss(tree_map(lambda t, g: t - 0.1 * g, x.model, grads))

    def same(x, received, batch):
        return batch.loss(axpy(x.model, -0.1, gradient(x.model, batch)))

    one, two = (
        train(Method(schedule=(Phase(objective=each),)), clients(), 0.1, execution=execution, model=linear)
        for each in (step, same)
    )
    torch.testing.assert_close(one.deployed([0])["model"], two.deployed([0])["model"], rtol=0, atol=1e-12)


def linear(momentum: float) -> nn.Module:
    return nn.Linear(4, 2)
