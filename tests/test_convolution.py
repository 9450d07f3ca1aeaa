"""Stacked convolutions as products of patches equal each client's own convolution, to any derivative."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from plures import Execution, Federation, PluresError, Run, Training, predictions, score
from plures.federation import SPLITS, Split
from plures.method import SGD, Method
from plures.methods import fedavg, local, perfedavg
from plures.models import Network
from plures.run.convolution import Patches
from plures.tasks import Classification

CLIENTS, N = 3, 2
CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}
KERNELS = {1: [(1,), (3,), (4,)], 2: [(1, 1), (3, 2), (2, 4)]}
SIZES = {1: (11,), 2: (9, 11)}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def options(axes: int) -> Iterator[dict[str, Any]]:
    """Every combination that PyTorch knows."""
    for stride, padding, dilation, groups in itertools.product((1, 2, 3), (0, 1, 2, "same", "valid"), (1, 2), (1, 2)):
        if padding != "same" or stride == 1:
            yield {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if axes == 2:
        yield {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3), "groups": 1}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("axes", [1, 2])
def test_values_and_gradients_are_those_of_every_client_alone(axes: int, last: bool) -> None:
    torch.manual_seed(0)
    plain = CONVOLUTIONS[axes]
    for kernel, chosen in itertools.product(KERNELS[axes], options(axes)):
        x = drawn(CLIENTS, N, 4, *SIZES[axes])
        if last:
            x = x.movedim(2, -1).contiguous().movedim(-1, 2)
        given = x, drawn(CLIENTS, 6, 4 // chosen["groups"], *kernel), drawn(CLIENTS, 6)

        def loss(given: tuple[Tensor, ...], chosen: dict[str, Any] = chosen) -> tuple[Tensor, Tensor]:
            y = plain(*given, **chosen)
            return (y.tanh() * torch.arange(y.numel()).view_as(y)).mean(), y

        with Patches():
            slopes, outputs = vmap(grad(loss, has_aux=True))(given)
        for client in range(CLIENTS):
            own, value = grad(loss, has_aux=True)(tuple(t[client] for t in given))
            for stacked, alone in zip((outputs, *slopes), (value, *own), strict=True):
                torch.testing.assert_close(stacked[client], alone, rtol=1e-12, atol=1e-12, msg=f"{kernel} {chosen}")


@pytest.mark.parametrize("axes", [1, 2])
def test_derivatives_of_any_order(axes: int) -> None:
    torch.manual_seed(0)
    plain, size, kernel = CONVOLUTIONS[axes], (5, 4)[:axes], (3, 2)[:axes]

    def stacked(x: Tensor, weight: Tensor) -> Tensor:
        with Patches():
            return vmap(lambda x, weight: plain(x, weight, None, 2, 1, 1, 2))(x, weight)

    def single(x: Tensor, weight: Tensor) -> Tensor:
        with Patches():
            return plain(x, weight, None, 2, 1, 1, 2)

    given = drawn(2, 2, 4, *size).requires_grad_(), drawn(2, 4, 2, *kernel).requires_grad_()
    for fn, some in ((stacked, given), (single, tuple(t[0].detach().requires_grad_() for t in given))):
        assert torch.autograd.gradcheck(fn, some)
        assert torch.autograd.gradgradcheck(fn, some)


def test_weights_of_all_clients_and_inputs_of_all_clients() -> None:
    torch.manual_seed(0)
    x, weight = drawn(CLIENTS, N, 4, 7, 6), drawn(CLIENTS, 6, 4, 3, 3)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight).tanh().sum()

    for places, given in (
        ((0, None), (x, weight[0])),
        ((None, 0), (x[0], weight)),
        ((0, 1), (x, weight.movedim(0, 1))),
    ):
        with Patches():
            found = vmap(grad(loss, (0, 1)), places)(*given)
        for client in range(CLIENTS):
            own = grad(loss, (0, 1))(
                x[client if places[0] is not None else 0], weight[client if places[1] is not None else 0]
            )
            for many, one in zip(found, own, strict=True):
                torch.testing.assert_close(many[client], one, rtol=1e-12, atol=1e-12)


def test_one_example_without_a_batch_axis_and_mappings_within_each_other() -> None:
    torch.manual_seed(0)
    x, weight = drawn(2, CLIENTS, 4, 9), drawn(2, CLIENTS, 6, 4, 3)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv1d(x, weight, padding="same").tanh().square().sum()

    with Patches():
        found = vmap(vmap(grad(loss, (0, 1))))(x, weight)
    for row, client in itertools.product(range(2), range(CLIENTS)):
        for many, one in zip(found, grad(loss, (0, 1))(x[row, client], weight[row, client]), strict=True):
            torch.testing.assert_close(many[row, client], one, rtol=1e-12, atol=1e-12)


class Convolving(nn.Module):
    """Layers and a function call, padding by reflection, groups, and a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
        self.weight = nn.Parameter(torch.randn(4, 2, 3, 3) / 4)
        self.third = nn.Conv2d(4, 4, 2, groups=4, bias=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x).relu(), 2)
        x = F.conv2d(x, self.weight, padding="same", groups=2).relu()
        return self.head(F.max_pool2d(self.third(x), 2).flatten(1))


def pictures(sizes: tuple[int, ...]) -> Federation:
    torch.manual_seed(0)
    owned = torch.arange(2 * sum(sizes)).split([2 * size for size in sizes])
    split = {"train": Split.of([rows[::2] for rows in owned]), "test": Split.of([rows[1::2] for rows in owned])}
    return Federation(
        name="pictures",
        task=Classification(("a", "b", "c")),
        inputs=torch.randn(2 * sum(sizes), 1, 10, 10),
        targets=torch.randint(0, 3, (2 * sum(sizes),)),
        clients=tuple(f"{i}" for i in range(len(sizes))),
        splits={name: split.get(name, split["test"]) for name in SPLITS},
    )


@pytest.mark.parametrize("method", [fedavg(), local(), perfedavg()], ids=["fedavg", "local", "perfedavg"])
def test_a_run_with_ragged_clients_is_that_of_one_client_after_the_other(method: Method) -> None:
    data = pictures((11, 7, 7, 3))
    training = Training(rounds=2, batch_size=4, optimizer=SGD(0.1))
    asked = (
        Execution("loop", 4, False, "float64"),
        Execution("vmap", 4, False, "float64", convolutions="patches"),
        Execution("vmap", 3, False, "float64", convolutions="grouped"),
    )
    runs = [Run(data, Convolving, method, training, execution=execution) for execution in asked]
    for run in runs:
        run.step()
        run.step()
    assert [run.execution.patches for run in runs] == [False, True, False]
    expected, *others = (run.deployed([0, 1, 2, 3])["model"] for run in runs)
    for found in others:
        for path, leaf in expected.items():
            torch.testing.assert_close(found[path], leaf, rtol=1e-11, atol=1e-11)


def test_a_network_knows_whether_it_convolves() -> None:
    network = Network(Convolving())
    network.probe(torch.randn(2, 1, 10, 10))
    assert network.convolves == {2}
    plain = Network(nn.Linear(3, 2))
    plain.probe(torch.randn(2, 3))
    assert plain.convolves == frozenset()


def test_patches_are_for_stacks_and_by_themselves_for_cuda_alone() -> None:
    assert not Execution("vmap").patches
    assert Execution("vmap", convolutions="patches").patches
    with pytest.raises(PluresError, match="convolutions='patches' is not used by backend='loop'"):
        Execution("loop", convolutions="patches")


@pytest.mark.parametrize("second", [False, True], ids=["gradient", "gradient of a gradient"])
def test_in_a_compiled_graph(second: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    leaves = {name: drawn(CLIENTS, *t.shape) for name, t in layer.named_parameters()}
    x = drawn(CLIENTS, N, 2, 7, 7)

    def loss(leaves: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, leaves, (x,)).tanh().sum()

    def adapted(leaves: dict[str, Tensor], x: Tensor) -> Tensor:
        slopes = grad(loss)(leaves, x)
        return loss({name: t - 0.1 * slopes[name] for name, t in leaves.items()}, x)

    objective = adapted if second else loss
    expected = vmap(grad(objective))(leaves, x)
    with Patches():
        found = torch.compile(lambda leaves, x: vmap(grad(objective))(leaves, x), backend="aot_eager")(leaves, x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_batch_normalisation_after_patches_gets_its_channels_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative of cuDNN's asks for the memory format of its input, and ``vmap`` has only the usual one."""
    seen: list[tuple[int, ...]] = []
    plain = torch.batch_norm

    def noted(input: Tensor, *args: Any) -> Tensor:
        seen.append(input.stride())
        return plain(input, *args)

    monkeypatch.setattr(torch, "batch_norm", noted)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double().eval()
    weights = {name: torch.stack([t] * CLIENTS) for name, t in network.state_dict().items()}
    x = drawn(CLIENTS, N, 2, 6, 6)
    with Patches():
        found = vmap(lambda leaves, x: functional_call(network, leaves, (x,)))(weights, x)
    assert seen == [(3 * 16, 16, 4, 1)]
    torch.testing.assert_close(found, network(x.flatten(0, 1)).unflatten(0, (CLIENTS, N)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN on this machine")
@pytest.mark.parametrize("method", [fedavg(), local()], ids=["fedavg", "local"])
def test_channels_last_changes_no_number_and_no_stored_layout(method: Method) -> None:
    """In float32 the loop trains and all clients are scored with the channels last; float64 never does."""
    data = pictures((11, 7, 7, 3))
    training = Training(rounds=2, batch_size=4, optimizer=SGD(0.1))
    exact, last, stack = (
        Run(data, Convolving, method, training, execution=execution)
        for execution in (
            Execution("loop", 4, False, "float64"),
            Execution("loop", 4, False, "float32"),
            Execution("vmap", 4, False, "float32"),
        )
    )
    assert [run.engine.channels_last for run in (exact, last, stack)] == [False, True, True]
    for run in (exact, last, stack):
        run.step()
    expected = exact.deployed([0, 1, 2, 3])["model"]
    for run in (last, stack):
        for path, leaf in run.deployed([0, 1, 2, 3])["model"].items():
            torch.testing.assert_close(leaf.double(), expected[path], rtol=1e-5, atol=1e-5)
            assert leaf[0].is_contiguous()
        for split in ("train", "test"):
            for client in data.clients:
                found, wanted = (predictions(one, client, split).outputs for one in (run, exact))
                torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-4)
                truth = data.inputs[data.splits[split][data.clients.index(client)]]
                assert len(found) == len(truth)
        ours, theirs = (score(one, "test").values["accuracy"] for one in (run, exact))
        assert ours.tolist() == theirs.tolist()
