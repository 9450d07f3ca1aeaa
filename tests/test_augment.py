"""Augmentation: hand-made batches, the same numbers on every way, different ones in every epoch and client."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import plures
from plures import Execution, Federation, PluresError, Run, Training
from plures.augment import (
    AUGMENTATIONS,
    Crop,
    Cutout,
    Each,
    Flip,
    Jitter,
    Key,
    Mask,
    Mixture,
    Mixup,
    Noise,
    Scale,
    Shift,
    augment_of,
)
from plures.augment.mixing import beta
from plures.augment.pictures import rotated
from plures.method import SGD
from plures.methods import ditto, fedavg
from plures.run.checkpoint import restore, snapshot
from plures.run.fingerprint import of_data
from plures.run.randomness import GAMMA, Keys, _mix


def key(n: int = 1000, first: int = 0) -> Key:
    return Key(torch.arange(first, first + n), torch.arange(n).roll(-1))


def pictures(n: int = 60, seed: int = 0, **options: object) -> Federation:
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(n, 1, 4, 4)), np.arange(n) % 3
    return plures.from_arrays(inputs, targets, np.repeat(["a", "b", "c"], [n // 6, n // 3, n // 2]), **options)  # type: ignore[arg-type]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def trained(federation: Federation, execution: Execution | None = None, rounds: int = 2) -> Tensor:
    work = Training(rounds=rounds, batch_size=4)
    run = Run(federation, network, ditto(lam=0.1), work, execution=execution or Execution("loop", 1, False))
    for _ in run.rounds():
        pass
    return torch.cat([t.flatten(1) for t in run.predictors([0, 1, 2]).values()], 1)


def test_the_bits_of_a_key_are_splitmix_64_s():
    numbers = np.array([0, 1, 2**63 + 5, 2**64 - 1], dtype=np.uint64)
    steps = np.arange(3, dtype=np.uint64)
    wanted: Keys = _mix(numbers[:, None] + steps * np.uint64(GAMMA))
    source = Key(torch.from_numpy(numbers.view(np.int64)), torch.arange(4))
    found = torch.cat([source.bits(2), source.bits()[:, None]], 1)
    assert np.array_equal(found.numpy().view(np.uint64), wanted)


def test_numbers_have_the_distributions_that_they_are_named_after():
    uniform, normal, whole = key().uniform(50), key().normal(50), key().integers(-2, 3, 50)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.005
    assert abs(float(uniform.var()) - 1 / 12) < 0.002
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert torch.allclose(whole.flatten().add(2).bincount() / 50_000, torch.full((5,), 0.2), atol=0.01)
    for alpha in (0.2, 1.0):
        share = beta(key(20_000), alpha)
        assert abs(float(share.mean()) - 0.5) < 0.01
        assert abs(float(share.var()) - 1 / (4 * (2 * alpha + 1))) < 0.005


def test_crop_is_a_window_of_the_padded_picture():
    x = torch.arange(1.0, 13).reshape(1, 1, 3, 4).repeat(200, 1, 1, 1)
    cut, _ = Crop(1)(key(200), x, torch.zeros(200))  # type: ignore[misc]
    wide = np.pad(x[0, 0].numpy(), 1)
    windows = {wide[r : r + 3, c : c + 4].tobytes() for r in range(3) for c in range(3)}
    assert {one.numpy().tobytes() for one in cut[:, 0]} == windows


def test_flip_turns_half_of_the_pictures_and_the_labels_of_their_pixels():
    x = torch.arange(6.0).reshape(1, 1, 2, 3).repeat(400, 1, 1, 1)
    turned, labels = Flip(vertical=True)(key(400), x, x[:, 0].long())  # type: ignore[misc]
    ways = {t.numpy().tobytes() for t in (x[0], x[0].flip(-1), x[0].flip(-2), x[0].flip(-1, -2))}
    assert {one.numpy().tobytes() for one in turned} == ways
    assert torch.equal(labels, turned[:, 0].long())
    assert torch.equal(Flip()(key(400), x, torch.arange(400))[1], torch.arange(400))  # type: ignore[index]


def test_rotation_by_a_right_angle_moves_pixels_and_a_small_one_blends_them():
    x = torch.arange(18.0).reshape(2, 1, 3, 3)
    quarter = rotated(x, torch.full((2,), math.pi / 2))
    assert torch.allclose(quarter, torch.rot90(x, 1, (-2, -1)), atol=1e-4)
    wide = torch.zeros(1, 1, 5, 9)
    wide[0, 0, 2, 6] = 1  # two to the right of the centre, so two above it after a quarter turn
    assert rotated(wide, torch.tensor([math.pi / 2]))[0, 0].round().nonzero().tolist() == [[0, 4]]


def test_jitter_keeps_the_shape_of_a_picture_and_changes_mean_and_spread_within_bounds():
    x = torch.tensor([[[0.0, 1.0], [2.0, 5.0]]]).repeat(500, 1, 1)
    found, _ = Jitter(0.5, 0.25)(key(500), x, torch.zeros(500))  # type: ignore[misc]
    moved, spread = found.flatten(1).mean(1) - 2, found.flatten(1).std(1) / x[0].std()
    assert moved.abs().max() <= 0.5
    assert moved.abs().max() > 0.45
    assert spread.min() >= 0.75 - 1e-6
    assert spread.max() <= 1.25 + 1e-6
    assert spread.std() > 0.1
    assert torch.allclose(found, 2 + spread[:, None, None] * (x - 2) + moved[:, None, None], atol=1e-5)


def test_cutout_is_a_square_of_zeros_around_a_pixel():
    holes = Cutout(2)(key(300), torch.ones(300, 2, 3, 3), torch.zeros(300))[0] == 0  # type: ignore[index]
    assert torch.equal(holes[:, 0], holes[:, 1])
    assert set(holes[:, 0].flatten(1).sum(1).tolist()) == {1, 2, 4}  # at a corner, at a side, inside


def test_series_and_tokens():
    x = torch.arange(1.0, 9).reshape(1, 2, 4).repeat(300, 1, 1)
    moved, _ = Shift(1)(key(300), x, torch.zeros(300))  # type: ignore[misc]
    ways = ([1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 0, 5, 6, 7], [2, 3, 4, 0, 6, 7, 8, 0])
    assert {tuple(one.flatten().tolist()) for one in moved} == set(map(tuple, ways))
    factor = Scale(0.1)(key(300), x, torch.zeros(300))[0] / x  # type: ignore[index]
    assert torch.allclose(factor, factor[..., :1].expand_as(factor))
    assert abs(float(factor.std()) - 0.1) < 0.01
    added = Noise(0.5)(key(300), x, torch.zeros(300))[0] - x  # type: ignore[index]
    assert abs(float(added.std()) - 0.5) < 0.02
    tokens = Mask(0.25, 9)(key(300), torch.zeros(300, 8, dtype=torch.int64), torch.zeros(300))[0]  # type: ignore[index]
    assert set(tokens.unique().tolist()) == {0, 9}
    assert abs(float((tokens == 9).float().mean()) - 0.25) < 0.02


def test_mixup_by_hand():
    source = key(3)
    x, y = torch.tensor([[1.0], [10.0], [100.0]]), torch.tensor([0, 1, 2])
    made = Mixup(1.0)(source, x, y)
    assert isinstance(made, Mixture)
    s = made.share[:, None]
    assert torch.allclose(made.inputs, s * x + (1 - s) * torch.tensor([[10.0], [100.0], [1.0]]))
    assert made.others.tolist() == [1, 2, 0]
    assert made.targets.tolist() == [0, 1, 2]


def test_partners_are_examples_of_the_same_batch_and_never_padding():
    seen: list[Tensor] = []

    def look(key: Key, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(key.partner)
        return inputs, targets

    augment_of(look)(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 2]), torch.zeros(2, 3), torch.zeros(2, 3))
    assert seen[0].tolist() == [1, 2, 0, 4, 3, 3]


def test_one_step_of_mixup_is_the_gradient_of_the_mixed_loss():
    """A round of one full-batch step, against the same step computed by hand from the batch's keys."""
    federation = plures.from_arrays(np.eye(4), [0, 1, 0, 1], ["a"] * 4, split=plures.federation.SplitRule(0.0, 0.0))
    kept: list[Mixture] = []

    def mixed(key: Key, inputs: Tensor, targets: Tensor) -> Mixture:
        made = Mixup(1.0)(key, inputs, targets)
        assert isinstance(made, Mixture)
        kept.append(made)
        return made

    module = nn.Linear(4, 2)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    work = Training(rounds=1, batch_size=None, optimizer=SGD(1.0))
    for execution in (Execution("loop", 1, False), Execution("vmap", 1, False)):
        run = Run(federation.augmented(mixed), module, fedavg(), work, execution=execution)  # type: ignore[arg-type]
        kept.clear()
        run.step()
        made = kept[-1]
        wanted = torch.zeros(2)
        for share, own, other in zip(made.share, made.targets, made.others, strict=True):
            half = torch.full((2,), 0.5)  # probabilities of a network of zeros
            wanted -= (share * (half - torch.eye(2)[own]) + (1 - share) * (half - torch.eye(2)[other])) / 4
        assert torch.allclose(run.predictors([0])["bias"][0], wanted, atol=1e-6)


@pytest.mark.parametrize("augment", ["crop(1)+flip+jitter+cutout(1)+noise", "mixup"])
def test_the_same_in_both_backends_and_chunks_and_in_no_other_way_than_without(augment: str):
    federation = pictures().augmented(augment)
    alone = trained(federation)
    for execution in (Execution("vmap", 3, False), Execution("vmap", 2, False)):
        assert torch.allclose(trained(federation, execution), alone, rtol=0, atol=1e-6)
    assert not torch.allclose(alone, trained(pictures()), atol=1e-4)


def test_every_epoch_step_and_client_has_changes_of_its_own_and_a_resumed_run_the_same():
    seen: dict[str, list[Tensor]] = {}

    def watched(key: Key, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.setdefault(place[0], []).append(key.numbers)
        return inputs, targets

    federation, place = pictures().augmented(watched), ["start"]
    run = Run(federation, network, fedavg(), Training(rounds=2, batch_size=4), execution=Execution("loop", 1, False))
    for place[0] in ("first", "second"):
        run.step()
        if place[0] == "first":
            saved = snapshot(run)
    every = torch.cat([torch.cat(seen["first"]), torch.cat(seen["second"])])
    assert len(every.unique()) == len(every) >= 2 * len(federation.splits["train"].rows)
    place[0] = "scored"
    plures.score(run, "test")
    assert "scored" not in seen, "nothing but training is augmented"
    place[0] = "resumed"
    again = Run(federation, network, fedavg(), Training(rounds=2, batch_size=4), execution=Execution("loop", 1, False))
    seen.pop("resumed", None)
    restore(again, saved)
    again.step()
    assert torch.equal(torch.cat(seen["resumed"]), torch.cat(seen["second"]))


def test_a_transform_of_one_example_draws_by_the_example_s_key_and_leaves_the_generators_alone():
    def one(picture: Tensor) -> Tensor:
        return picture + torch.rand(()) + float(np.random.random())

    x = torch.zeros(4, 1, 2, 2)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, _ = Each(one)(key(4), x, torch.zeros(4))  # type: ignore[misc]
    assert torch.equal(torch.random.get_rng_state(), before)
    last, _ = Each(one)(key(2, first=2), x[2:], torch.zeros(2))  # type: ignore[misc]
    assert torch.equal(last, first[2:])
    assert len(first.flatten().unique()) == 4
    same = trained(pictures().augmented(Each(one)))
    stacked = trained(pictures().augmented(Each(one)), Execution("vmap", 3, False))
    assert torch.allclose(same, stacked, rtol=0, atol=1e-6)


def test_a_transform_with_a_generator_of_its_own_gets_a_picture_with_channels_last():
    class Compose:  # the interface of albumentations
        def set_random_seed(self, seed: int) -> None:
            self.drawn = np.random.default_rng(seed).random()

        def __call__(self, *, image: np.ndarray) -> dict[str, np.ndarray]:
            assert image.shape == (2, 5, 3)
            return {"image": np.flip(image, 1) + np.float32(self.drawn)}

    x = torch.rand(2, 3, 2, 5)
    one, _ = Each(Compose())(key(2), x, torch.zeros(2))  # type: ignore[misc]
    two, _ = Each(Compose())(key(2), x, torch.zeros(2))  # type: ignore[misc]
    added = one - x.flip(-1)
    assert torch.equal(one, two)
    assert torch.allclose(added, added[:, :1, :1, :1].expand_as(added), atol=1e-6)


def test_names_options_and_the_fingerprint():
    assert augment_of("crop(padding=2) + flip(true)").parts == (Crop(2), Flip(True))
    assert augment_of(["mask(0.1, 3)", Noise(0.2)]).parts == (Mask(0.1, 3), Noise(0.2))
    federation = pictures()
    told = [of_data(federation.augmented(one)) for one in (None, "flip", "crop(1)", "crop(2)")]
    assert len({str(sorted(one.items())) for one in told}) == 4
    names = ["crop", "cutout", "flip", "jitter", "mask", "mixup", "noise", "rotate", "scale", "shift"]
    assert sorted(AUGMENTATIONS) == names


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("crp(4)", "no augmentation 'crp'; did you mean 'crop'?"),
        ("crop(4, 5)", "'5' belongs to no option"),
        ("crop(size=4)", "no parameter 'size'"),
        ("crop(0)", "padding=0; give at least 1"),
        ("mask(0.1, 3)", "it is for tokens, not for float32 of shape (1, 4, 4)"),
        ("mixup(2)", "alpha=2; give a number in (0, 1]"),
        ("mixup+flip", "augmentation mixup mixes examples: put it last"),
        (lambda key, x, y: x, "it returns a Tensor, not (inputs, targets)"),
        (lambda key, x, y: (x[:, :, 1:], y), "keep both"),
        (7, "augmentation 7"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(augment: object, message: str):
    with pytest.raises(PluresError) as refusal:
        Run(pictures().augmented(augment), network, fedavg())  # type: ignore[arg-type]
    assert message in str(refusal.value)


def test_pixels_do_not_move_without_their_labels():
    federation = replace(pictures(), targets=torch.zeros(60, dtype=torch.int64))
    with pytest.raises(PluresError, match="it moves the inputs, but not targets of shape"):
        Crop(1).check((1, 4, 4), torch.float32, (4, 4))
    assert federation.augmented("crop(1)").augment is not None


def test_examples_of_a_loss_that_compares_them_are_not_mixed():
    times = np.stack([np.arange(1.0, 61), np.arange(60) % 2], 1)
    rows = np.random.default_rng(0).normal(size=(60, 3))
    federation = plures.from_arrays(rows, times, ["a", "b"] * 30, task="survival").augmented("mixup")
    with pytest.raises(PluresError, match="compares the examples of a batch, which cannot be mixed"):
        Run(federation, lambda: nn.Linear(3, 1), fedavg())


def test_a_transform_of_torchvision_draws_by_the_key_in_the_loop() -> None:
    """Each picture as torchvision changes it after its generator was seeded with the number of its key."""
    library = pytest.importorskip("torchvision.transforms.v2")
    change = library.Compose([library.RandomHorizontalFlip(), library.RandomRotation(30), library.RandomErasing()])
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found, _ = Each(change)(key(4), x, torch.zeros(4))  # type: ignore[misc]
    for one, made, seed in zip(x, found, (key(4).bits() & 0x7FFFFFFF).tolist(), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(made, change(one))
    data = pictures().augmented(Each(change))
    assert torch.equal(trained(data), trained(data))
    assert torch.allclose(trained(data), trained(data, Execution("vmap", 3, False)), rtol=0, atol=1e-6)


def test_a_transform_of_albumentations_draws_by_the_key() -> None:
    """Each picture as albumentations changes it after `set_random_seed` with the number of its key."""
    library = pytest.importorskip("albumentations")
    change = library.Compose([library.HorizontalFlip(p=0.5), library.RandomBrightnessContrast(p=1.0)])
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found, _ = Each(change)(key(4), x, torch.zeros(4))  # type: ignore[misc]
    for one, made, seed in zip(x, found, (key(4).bits() & 0x7FFFFFFF).tolist(), strict=True):
        change.set_random_seed(seed)
        wanted = change(image=one.permute(1, 2, 0).contiguous().numpy())["image"]
        assert made.permute(1, 2, 0).tolist() == wanted.tolist()
