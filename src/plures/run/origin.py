"""Starting point of a run, wherever its clients are: the method bound to its network, and all initial values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Tensor, nn

from plures.entropy import Secret
from plures.errors import PluresError
from plures.federation import Federation
from plures.method import Block, BlockState, Bound, Method, Setting
from plures.models import Leaves, Marked, ModelFactory, Network, nested
from plures.privacy import ExamplesPlan, Plan, examples_plan, settled
from plures.run.participation import Full, Joint, Participation, asked, drawn, may_be_empty
from plures.run.randomness import fold, name_key
from plures.run.rehearse import check_loss, failure
from plures.run.training import Training
from plures.run.turn import Paced

Build = Callable[[int], Network]
"""``build(seed)``: the network that the method works on, with the initial values of that seed."""


TYPICAL = 16
"""Rounds by which the typical size of a cohort is found that differs from round to round."""


@dataclass(frozen=True)
class Origin:
    """The starting point of a run.

    Attributes:
        bound: the method, resolved against its network.
        setting: facts about all clients.
        participation: who takes part in each round.
        seed: root of all randomness.
        other: initial leaves of the further models that some methods start, by number from 1.
        plan: differential privacy of the run; ``None`` without.
        method: the method as it was given, before the plan settled what it says of weights and noise.
        secret: key of the server's random numbers in a federation of sites; ``None`` in a simulation, where they
            follow from the seed.
    """

    bound: Bound
    setting: Setting
    participation: Participation
    seed: int
    other: Callable[[int], dict[str, Leaves]]
    plan: Plan | ExamplesPlan | None
    method: Method
    secret: Secret | None = None

    @classmethod
    def of(
        cls,
        method: Method,
        model: nn.Module | ModelFactory,
        setting: Setting,
        federation: Federation,
        dtype: torch.dtype,
        participation: Participation | None = None,
        seed: int = 0,
        *,
        local: bool = False,
    ) -> Origin:
        """The origin of a run.

        Args:
            method: what to run.
            model: a factory of modules, called with the seed set; or a module, whose values start the run.
            setting: facts about all clients.
            federation: the data, whose task and shapes count here.
            dtype: floating-point type of the leaves.
            participation: who takes part in each round; default: everybody.
            seed: root of all randomness.
            local: whether this is one client's own part of a run elsewhere.
        """
        build = builder(method, model, setting, federation, dtype)

        def another(number: int) -> Network:
            if isinstance(model, nn.Module):
                raise PluresError(
                    "the method starts several models from different values, but the model given is a module, whose "
                    "values start them all: give a function that returns a new module, such as lambda: Net()"
                )
            return build(int(fold(seed, name_key("cluster"), number)) % 2**31)

        def other(number: int) -> dict[str, Leaves]:
            return method.bind(another(number), setting, lambda n: another(number + n).leaves()).initial

        network = build(seed)
        check_outputs(network, federation)
        bound = method.bind(network, setting, lambda number: another(number).leaves())
        rule = participation or Full()
        rule = rule.of(travels=bound.travels) if isinstance(rule, Joint) else rule
        given = method
        method, plan = settled(given, lambda: drawn(rule, setting, seed), travels=bound.travels)
        if plan is not None:
            bound = method.bind(network, setting, lambda number: another(number).leaves())
            plan.check(bound)
            plan = plan.sized(bound)
        return cls(bound.local() if local else bound, setting, rule, seed, other, plan, given)

    def counting(self, training: Training) -> Origin:
        """The same, with the plan of steps that are private for single examples, if the method has such steps."""

        def visits(rounds: int) -> int:
            return max(Counter(client for round in range(rounds) for client in self.cohort(round)).values(), default=0)

        found = examples_plan(self.bound, training.batch_size, training.steps, visits)
        if found is not None and self.plan is not None:
            raise PluresError("dp_sgd beside dp: two kinds of privacy are not accounted for together; leave one out")
        if found is not None and isinstance(self.participation, Paced):
            raise PluresError(
                "dp_sgd beside a clock or a selection: who takes part depends on what happens, and is not accounted for"
            )
        return self if found is None else replace(self, plan=found)

    def cohort(self, round: int) -> list[int]:
        """Positions of the clients of a round, in increasing order.

        They are a secret of the server if a plan of privacy counts on that, and follow from the seed otherwise.
        """
        chosen = self.participation.cohort(self.setting, self._seed(round), round)
        what = f"participation {type(self.participation).__name__}, round {round + 1}"
        if not chosen and not may_be_empty(self.participation):
            raise PluresError(f"{what}: nobody takes part; choose at least one client for each round")
        last = len(self.setting) - 1
        for client in chosen:
            if not isinstance(client, int | Integral) or not 0 <= client <= last:
                raise PluresError(f"{what}: {client!r} is not a client; give positions from 0 to {last}")
        return sorted({int(client) for client in chosen})

    def asked(self, round: int) -> list[int]:
        """The cohort of a round and those that simulated drop-outs keep away, in increasing order."""
        return asked(self.participation, self.setting, self._seed(round), round)

    def _seed(self, round: int) -> int:
        """What the cohort of a round follows from."""
        if self.secret is not None and isinstance(self.plan, Plan) and self.plan.amplified:
            return self.secret.number("cohort", round)
        return self.seed

    @property
    def size(self) -> int:
        """Number of clients of a typical round."""
        sizes = [len(self.cohort(round)) for round in range(TYPICAL if may_be_empty(self.participation) else 1)]
        return max(1, round(sum(sizes) / len(sizes)))

    def block_state(self, block: Block) -> BlockState:
        """What the server keeps of a block at the start."""
        buffers = frozenset(map(str, block.leaves)) - frozenset(map(str, self.bound.parameters(block)))

        def values(initial: dict[str, Leaves]) -> Leaves:
            return Marked({str(leaf): initial[leaf.slot][leaf.path] for leaf in block.leaves}, buffers)

        kept = block.share.start(values(self.bound.initial), lambda number: values(self.other(number)), self.setting)
        return replace(kept, buffers=buffers)

    def memory(self, block: Block, kept: BlockState) -> Leaves:
        """Initial memory of the server's step of a block. The step moves parameters; buffers are only combined."""
        moved = {k: kept.values[k] for k in map(str, self.bound.parameters(block))}
        return self.bound.combine(block).start(moved, len(self.setting)) if moved else {}


def check_outputs(network: Network, federation: Federation) -> None:
    """Refuse a model whose outputs do not fit the task, before anything is trained."""
    example = federation.inputs[:2]
    if not len(example):
        example = nested.mapped(lambda t: t.new_zeros(2, *t.shape[1:]), federation.inputs)
    try:
        outputs, _ = network(network.leaves(), example, train=False)
    except PluresError:
        raise
    except Exception as error:
        raise PluresError(
            f"the model cannot read examples of shape {federation.features}: {failure(error)}; its forward must take "
            + ("one tensor (batch, *shape)" if isinstance(federation.inputs, Tensor) else "these tensors by name")
        ) from error
    if not isinstance(outputs, Tensor):
        raise PluresError(
            f"the model gives {type(outputs).__name__}, not a tensor: wrap it in a module whose forward returns the "
            "class scores or numbers alone, such as its field logits"
        )
    task = federation.task
    if tuple(outputs.shape) != (len(example), *task.shape):
        raise PluresError(
            f"the model gives outputs of shape {tuple(outputs.shape[1:])}, but {task.kind} on {federation.name!r} "
            f"needs {task.shape}: set its number of outputs to {task.outputs}"
        )
    check_loss(federation, outputs.detach())


def builder(
    method: Method, model: nn.Module | ModelFactory, setting: Setting, federation: Federation, dtype: torch.dtype
) -> Build:
    """How the network of a run is built, on the device of a federation."""

    def build(seed: int) -> Network:
        return Network(method.prepare(model, setting, seed).to(federation.inputs.device, dtype))

    return build
