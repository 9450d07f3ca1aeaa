"""The frozen first part of a network: its outputs for an example never change, so they can be computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from plures.federation.inputs import Inputs
from plures.models.layers import KeyedDropout
from plures.models.network import BATCH_NORMS, FEATURES, Network

BATCH = 256
"""Examples that pass through the first part at once."""
CLOSE = 1e-4


@dataclass
class _Chain:
    """Modules of which each reads what the one before it gives; the first one reads the network's input.

    Attributes:
        network: whose modules are followed.
        current: the input, then what the last module of the chain gave.
        names: the modules so far.
        calls: how often each module was called.
        inside: the module of the chain that is at work.
    """

    network: Network
    current: Any
    names: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    inside: str | None = None

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        reads = len(args) == 1 and not options and args[0] is self.current
        if self.inside is None and reads and _settled(self.network, name, module):
            self.inside = name
        elif self.inside is None and reads and not any(module.children()):
            self.current = None  # such as dropout, which gives what it gets in evaluation mode

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], given: Any) -> None:
        if self.inside == name:
            self.inside, self.current = None, given if isinstance(given, Tensor) and given.dim() > 1 else None
            self.names.append(name)


def _settled(network: Network, name: str, module: nn.Module) -> bool:
    """Whether a module always gives the same for an example: nothing trained, nothing random, no batch statistics."""
    inside = [path for path in network.info if path.startswith(f"{name}.")]
    moving = any(_moving(part) for part in module.modules())
    return bool(name) and network.frozen.issuperset(inside) and not moving


def _moving(part: nn.Module) -> bool:
    if isinstance(part, KeyedDropout):
        return part.p > 0
    return isinstance(part, BATCH_NORMS) and part.running_mean is None


def first_part(network: Network, inputs: Tensor) -> tuple[str, ...]:
    """Names of the modules that a network passes its input through, one after the other, before anything is trained.

    Whether the rest of the network needs nothing but their output is tried, with other values of what is trained.

    Args:
        network: after :meth:`Network.probe`.
        inputs: ``(batch, *features)``, a few examples.

    Returns:
        The names in order; none if there is no such part with parameters.
    """
    if network.draws or len(inputs) < 2:
        return ()
    chain = _Chain(network, inputs)
    with torch.no_grad(), _followed(network.module, chain):
        network(network.live, inputs, train=False)
    names = [*takewhile(lambda name: chain.calls[name] == 1, chain.names)]
    while names and any(path.startswith(f"{name}.") for name in names for path in network.info):
        if _enough(network, tuple(names), inputs):
            return tuple(names)
        names.pop()
    return ()


def through(network: Network, names: tuple[str, ...], inputs: Tensor) -> Tensor:
    """What the first part gives, ``(n, *features)``."""
    found: Tensor | None = None
    with torch.no_grad(), network.evaluating():
        for first in range(0, len(inputs), BATCH):
            some = inputs[first : first + BATCH]
            for name in names:
                some = network.module.get_submodule(name)(some)
            if found is None:
                found = some.new_empty(len(inputs), *some.shape[1:])
            found[first : first + BATCH] = some
    assert found is not None
    return found


def _enough(network: Network, names: tuple[str, ...], inputs: Tensor) -> bool:
    """Whether the first part's outputs, each of one example alone, are all that the rest of the network needs."""
    rest = network.beyond(names)
    rng = torch.Generator().manual_seed(0)
    leaves = {
        path: t
        if path in network.fixed or not t.is_floating_point()
        else t + 0.1 * torch.randn(t.shape, generator=rng).to(t)
        for path, t in network.leaves().items()
    }
    with torch.no_grad():
        known = through(network, names, inputs)
        alone = torch.cat([through(network, names, inputs[row : row + 1]) for row in range(len(inputs))])
        wanted, _ = network(leaves, inputs, train=False)
        try:
            found, _ = rest(leaves, Inputs({FEATURES: known}), train=False)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return False  # the rest reads the input itself, too
    return _alike(found, wanted) and _alike(alone, known)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=CLOSE, atol=CLOSE)


@contextmanager
def _followed(module: nn.Module, chain: _Chain) -> Iterator[None]:
    hooks = []
    for name, part in module.named_modules():

        def before(part: nn.Module, args: Any, options: Any, name: str = name) -> None:
            chain.before(name, part, args, options)

        def after(part: nn.Module, args: Any, given: Any, name: str = name) -> None:
            chain.after(name, part, args, given)

        hooks += [part.register_forward_pre_hook(before, with_kwargs=True), part.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
