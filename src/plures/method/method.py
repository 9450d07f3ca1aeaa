"""A method is six parts: layout, objective, schedule, wire, combine, predict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, SupportsIndex
from zlib import crc32

import torch
from torch import Tensor, nn

from plures.brief import brief
from plures.content import alike
from plures.errors import PluresError, suggestion
from plures.given import Given
from plures.method.channel import (
    BUFFERS,
    CHOICES,
    FACTS,
    GRADIENTS,
    MEASURED,
    NUMBER,
    TRAINING,
    UPDATE,
    VIEWS,
    WEIGHTS,
    Channel,
    masked,
)
from plures.method.combine import Combine
from plures.method.compose import combines, entries, layouts, only, predictions, schedules
from plures.method.layout import Block, Layout, Selector, address, blocks
from plures.method.leaf import Leaf
from plures.method.predict import Predict
from plures.method.schedule import Phase, Schedule
from plures.method.setting import Setting
from plures.method.shares.clusters import Clustered
from plures.method.shares.mixing import View
from plures.method.shares.share import Frozen, Known, Personal, Shared
from plures.method.sizes import RATE, Held, Sized, Sizes, rate_of, sizes_of
from plures.method.state import State
from plures.method.tree import zeros_like
from plures.method.wire import Line, Wire, lay, wired
from plures.models import LeafInfo, Leaves, Marked, ModelFactory, Network, build
from plures.models.network import seeded
from plures.signature import checked


@brief
@dataclass(frozen=True, eq=False)
class Start:
    """What the initial leaves of a slot may depend on.

    Attributes:
        model: the model's initial leaves.
        network: the model.
        setting: facts about the federation.
        fresh: ``fresh(number)`` gives other random initial leaves of the model.
    """

    model: Leaves
    network: Network
    setting: Setting
    fresh: Callable[[int], Leaves]


Slot = Callable[[Start], Leaves] | Selector
"""Initial leaves of a slot, or the selector of the model's leaves that it copies."""


WIRE = "wire"
"""The slot that holds the memory of the wire's stages."""

Add = Callable[[nn.Module, Setting], nn.Module]
"""Adds a part that a model lacks: ``(model, setting) -> model`` with the part marked by its role."""


def zeros(start: Start) -> Leaves:
    """A slot of zeros, one for every floating-point leaf of the model."""
    return zeros_like(start.model)


@checked
@dataclass(frozen=True)
class Method:
    """A federated method as data. The objective, part 2, lives in the phases of the schedule.

    Attributes:
        layout: slot names or selectors to shares; the first entry that matches a leaf decides.
        schedule: what a client does when visited.
        slots: initial leaves of slots beside ``model``: a function of :class:`Start`, or a selector whose leaves are
            copied; a slot named in the layout but not here starts as a copy of the model.
        wire: stages that an upload passes, in this order; their memory is the client's slot ``wire``.
        combine: how uploads become the new value; one for all blocks, or one for each slot.
        predict: how a client predicts.
        adds: parts to add to a model, by role, if it has none with that role: adapters, gates.
        between: what a client does after an experience of a stream (:func:`plures.run.learn`), for leaves that
            stay with it.
        sizes: how much of the network each client holds; default: all of it.
        made: the entry of the catalogue that made it and the parameters, by which it is pickled; not an argument.

    Examples:
        >>> ifca, fedrep = plures.METHODS["ifca"](clusters=2), plures.METHODS["fedrep"]()
        >>> [type(share).__name__ for share in (ifca + fedrep).layout.values()]
        ['Personal', 'Clustered']
    """

    layout: Layout = field(default_factory=lambda: {"model": Shared()})
    schedule: Schedule = (Phase(),)
    slots: Mapping[str, Slot] = field(default_factory=dict)
    wire: Wire = ()
    combine: Combine | Mapping[str, Combine] = field(default_factory=Combine)
    predict: Predict | str = field(default_factory=Predict)
    adds: Mapping[str, Add] = field(default_factory=dict)
    between: Schedule = ()
    sizes: Sizes | None = None
    made: Given[Method] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def predictor(self) -> Predict:
        return self.predict if isinstance(self.predict, Predict) else Predict(self.predict)

    @property
    def rules(self) -> dict[str, Combine]:
        """Every slot, and how it is combined."""
        slots = {"model", *self.slots, *(key for key in self.layout if isinstance(key, str))}
        combine = self.combine
        return {s: combine if isinstance(combine, Combine) else combine.get(s, Combine()) for s in sorted(slots)}

    @property
    def everywhere(self) -> Combine:
        """How slots are combined that another method adds: by the reducer that is given for all."""
        return Combine(reduce=self.combine.reduce) if isinstance(self.combine, Combine) else Combine()

    def prepare(self, model: nn.Module | ModelFactory, setting: Setting, seed: int = 0) -> nn.Module:
        """The module that the method works on: the model with the missing parts added.

        Args:
            model: a factory of modules, or a module, whose values are kept.
            setting: facts about the federation.
            seed: determines a factory's initial values and, independently, those of each added part.
        """
        module = build(model, seed)
        for role, add in self.adds.items():
            if role not in getattr(module, "roles", {}):
                with seeded(seed ^ crc32(role.encode())):
                    module = add(module, setting)
        return module

    def bind(self, network: Network, setting: Setting, fresh: Callable[[int], Leaves] | None = None) -> Bound:
        """Resolve slots, layout and travel against a network's leaves.

        Args:
            network: the model.
            setting: facts about the federation.
            fresh: other random initial leaves of the model, by number; default: always the same.
        """
        return Bound(self, network, setting, fresh)

    def __eq__(self, other: object) -> bool:
        """Methods are equal that were made alike, or whose parts are equal."""
        if not isinstance(other, Method):
            return NotImplemented
        if self.made is not None and self.made == other.made:
            return True
        names = [field.name for field in fields(self) if field.compare]
        return all(alike(getattr(self, name), getattr(other, name)) for name in names)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle how the method was made, if a catalogue's entry made it, for its functions are often local ones."""
        return super().__reduce_ex__(protocol) if self.made is None else (self.made, ())

    def __copy__(self) -> Method:
        return self

    def __deepcopy__(self, memo: object) -> Method:
        return self

    def __add__(self, other: Method) -> Method:
        """The method that applies the changes of both to plain FedAvg.

        Two methods compose when they change different things:

        * layout: entries of both; an entry of both must be equal, or plain sharing in one of them. Selectors come
          first, those of ``self`` before those of ``other``; the first that selects a leaf decides.
        * slots: those of both, with different names; only what clients know about themselves may share a name.
        * schedule: where one method says "train the model" by a plain ``Phase()``, the other's work takes its place. A
          single phase that only changes the objective of a slot gives its objective to the other's phases of that slot.
        * wire: the stages of ``self``, then those of ``other``.
        * combine: weights, server and reducer, each changed by one of them. A reducer that is given for all blocks
          combines those of the other method, too.
        * predict: what predicts, and how it decides, each changed by one of them; the adaptation of ``self``, then that
          of ``other``, of different slots, and after both the calibrations, in order; the larger number of visits.
        * between: the work between experiences of ``self``, then that of ``other``.
        * sizes: those of the method that has any.

        Raises:
            PluresError: where both change the same thing.
        """
        return replace(
            self,
            layout=layouts(self.layout, other.layout, self.rules.keys() & other.rules.keys()),
            schedule=schedules(self.schedule, other.schedule),
            slots={**self.slots, **other.slots},
            wire=wired(self.wire, other.wire),
            combine=combines(self.rules, other.rules, self.everywhere, other.everywhere),
            predict=predictions(self.predictor, other.predictor),
            adds=entries("the part added as", self.adds, other.adds),
            between=self.between if self.between == other.between else self.between + other.between,
            sizes=only("how much of the network each client holds", self.sizes, other.sizes),
        )


class Bound:
    """A method resolved against a network: every leaf has a block, every block a share.

    Attributes:
        initial: initial leaves of every slot.
        info: structure of every slot's leaves.
        blocks: the layout, resolved.
        written: leaves that local work changes, and those in which the wire remembers.
        line: the wire, prepared for the parameters that travel.
        down: the stages for what the server sends, prepared for the parameters of the network that all clients share;
            without stages if everything goes out as it is.
        sizes: how much of the network each client holds; ``None`` for all of it.
        buffers: leaves that travel beside it: running statistics and integers.
        channels: everything that leaves a client.
        probes: whether a share asks for gradients at the initial model.
        verdicts: what was found out about functions of a batch: whether padding changes the result, and whether one
            backward pass serves a stack of clients.
    """

    verdicts: dict[tuple[int, ...], tuple[object, bool]]

    def __init__(
        self, method: Method, network: Network, setting: Setting, fresh: Callable[[int], Leaves] | None = None
    ) -> None:
        self.method, self.network, self.setting = method, network, setting
        self.verdicts = {}
        model = network.leaves()
        known = Marked(model, network.fixed)
        start = Start(known, network, setting, fresh or (lambda number: network.leaves()))
        self.held: Held | None = None
        self.sizes = sizes_of(method.sizes, network.module)
        if self.sizes is not None:
            network.widths = self.sizes.widths(network, setting)
            self.held = self.sizes.held(network, network.widths, setting)
        device = next(iter(model.values())).device
        self.initial: dict[str, Leaves] = {"model": model}
        extra = [key for key in method.layout if isinstance(key, str) and key != "model"]
        for slot in dict.fromkeys([*extra, *method.slots]):
            leaves = self._first(slot, start)
            self.initial[slot] = {k: t.to(device, copy=True) for k, t in leaves.items()}
        other = LeafInfo("", type(network.module), frozenset(), False)
        self.info = {
            slot: {path: network.info.get(path) or replace(other, path=path) for path in leaves}
            for slot, leaves in self.initial.items()
        }
        self.blocks = blocks(method.layout, self.info)
        self._check_slots()
        self.written = self.written_by(method.schedule + method.between)
        self._travelling = {
            block.name: tuple(leaf for leaf in block.leaves if leaf in self.written) if block.share.travels else ()
            for block in self.blocks
        }
        going = [leaf for block in self.blocks for leaf in self.travelling(block)]
        self.buffers = tuple(leaf for leaf in going if self._buffer(leaf))
        moved = [leaf for leaf in going if leaf not in self.buffers]
        zeros = {str(leaf): torch.zeros_like(self.initial[leaf.slot][leaf.path])[None] for leaf in moved}
        self.line = lay(tuple(stage for stage in method.wire if not getattr(stage, "down", False)), zeros)
        self.down = self._downward(zeros)
        self._remember()
        self._view_inputs = self._read_by_views()
        self.probes = any(block.share.probes for block in self.blocks)
        self._probed = self._probed_by_shares()
        if not self.written:
            frozen = all(leaf.frozen or leaf.buffer for leaf in network.info.values())
            raise PluresError(
                "every parameter of the model is frozen (requires_grad=False), so there is nothing to train: unfreeze "
                "some, or use a method that adds parts (lora, community)"
                if frozen
                else "the schedule trains nothing: name a slot in a phase, or give a phase a leaf that is not frozen"
            )
        self._check_rules()
        self._check_sum()
        self._check_sizes()
        self.channels = self._leaving()
        self._check_channels()
        self.network = network.holding(self._unchanging())

    def _first(self, slot: str, start: Start) -> Leaves:
        """Initial leaves of a slot."""
        share, made = self.method.layout.get(slot), self.method.slots.get(slot)
        if isinstance(share, Known):
            return share.leaves(start.setting)
        if isinstance(share, Sized):
            return self._sized(start)
        if isinstance(share, View):
            if share.of is not None and share.of not in self.initial:
                raise PluresError(f"{slot!r}: no slot {share.of!r}; {suggestion(share.of, self.initial, 'slots are')}")
            return share.leaves({} if share.of is None else self.initial[share.of], start.setting)
        if made is None:
            return start.model
        if isinstance(made, Selector):
            info = {made.slot: start.network.info}
            return {path: start.model[path] for _, path in address([made], info, f"slot {slot!r}")[0]}
        return made(start)

    def _sized(self, start: Start) -> Leaves:
        """What a client that holds the whole network knows of its size."""
        made = () if start.network.widths is None else sorted(start.network.widths.made)
        return {name: torch.ones((), dtype=start.network.dtype) for name in (RATE, *map(rate_of, made))}

    def _check_slots(self) -> None:
        """Refuse unknown slot names."""
        method, predict = self.method, self.method.predictor
        named_in: list[tuple[str, str]] = [("predict", predict.model)] if isinstance(predict.model, str) else []
        named_in += [(f"calibration {stage.slot!r}", stage.slot) for stage in predict.calibrate]
        named_in += [("combine", slot) for slot in method.combine] if isinstance(method.combine, Mapping) else []
        for item in (*method.schedule, *method.between, *predict.adapt):
            slots, what = (item.keeps, "keeps") if isinstance(item, Phase) else (item.writes, "writes")
            named_in += [(f"{'phase' if isinstance(item, Phase) else 'assignment'}: {what}", slot) for slot in slots]
        for block in self.blocks:
            share = block.share
            if (
                isinstance(share, Personal)
                and isinstance(share.unseen, str)
                and share.unseen not in ("initial", "mean")
            ):
                named_in.append((f"{block.name!r}: unseen", share.unseen))
        for where, slot in named_in:
            if slot not in self.initial:
                raise PluresError(f"{where}: no slot {slot!r}; {suggestion(slot, self.initial, 'slots are')}")

    def _check_rules(self) -> None:
        """Refuse weights that do not fit their reducer, and gradient probes without parameters."""
        if self.probes and not self.probed():
            raise PluresError(
                "the method groups clients by gradients of the leaves that travel, but no leaf of the model does: "
                "train some that are shared, or group by something else"
            )
        for block in self.blocks:
            rule, leaves = self.combine(block), self.travelling(block)
            if leaves and rule.reduce is not None:
                rule.reduce.check(len(self.setting))
            if not leaves or not callable(rule.weights):
                continue
            given = self.weighed(block, self.initial)
            if isinstance(given, Tensor):
                continue
            if rule.reduce is not None:
                raise PluresError(
                    f"combine of {block.name!r}: weights of single entries need a weighted mean; the reducer would "
                    "not see them: give one weight for each client, or leave reduce out"
                )
            without = [leaf for leaf in self.parameters(block) if leaf in leaves and str(leaf) not in given]
            if without:
                raise PluresError(
                    f"combine of {block.name!r}: the weights have no entry for {str(without[0])!r}: add it"
                )

    def _downward(self, zeros: Leaves) -> Line:
        """The line for downloads.

        Raises:
            PluresError: if clients do not all have the same model.
        """
        stages = tuple(stage for stage in self.method.wire if getattr(stage, "down", False))
        if not stages or not zeros:
            return lay((), {})
        name = type(stages[0]).__name__
        for block in self.blocks:
            if self.travelling(block) and not block.share.common:
                raise PluresError(
                    f"wire stage {name} sends one change to everybody, but in block {block.name!r} clients do not all "
                    "have the same model: leave it out"
                )
        model = [leaf for b in self.blocks for leaf in self.travelling(b) if str(leaf) in zeros and self.of_model(leaf)]
        line = lay(stages, {str(leaf): zeros[str(leaf)] for leaf in model})
        payload, whole = (sum(t.nbytes for t in form.values()) for form in (line.payload, line.forms[0]))
        return line if payload < whole else lay((), {})

    def _check_sum(self) -> None:
        """Refuse what a server cannot do that reads only the sum of all uploads."""
        if not self.line.summed:
            return
        name = type(self.line.stages[-1]).__name__
        for block, reason in self._beyond_sums():
            raise PluresError(f"wire stage {name} gives the server a sum alone, but block {block.name!r}: {reason}")

    def _beyond_sums(self) -> Iterator[tuple[Block, str]]:
        """Blocks that need more than one sum of all uploads, and why."""
        blocks = [b for b in self.blocks if any(leaf not in self.buffers for leaf in self.travelling(b))]
        for block in blocks:
            rule = self.combine(block)
            reasons = {
                "its reducer must see individual uploads": not rule.linear,
                "its weights are computed by the clients": callable(rule.weights),
                "its clients do not all have the same model": not block.share.common,
                "its uploads count otherwise than those of other blocks": rule.weights
                != self.combine(blocks[0]).weights,
            }
            yield from ((block, reason) for reason, true in reasons.items() if true)

    def _check_sizes(self) -> None:
        """Refuse what needs uploads of one size, where clients hold parts of the network that differ in size."""
        if self.held is None:
            return
        if self.line.stages:
            raise PluresError(
                f"wire stage {type(self.line.stages[0]).__name__} needs uploads of one size, but clients hold parts of "
                "the network that differ in size: leave one of the two out"
            )
        if self.down.stages:
            raise PluresError(
                f"wire stage {type(self.down.stages[0]).__name__} sends all clients the same changes, but they hold "
                "parts of the network that differ in size: leave one of the two out"
            )
        for block in self.blocks:
            if not self.cut(block.leaves):
                continue
            share = block.share
            known = isinstance(share, Shared | Personal | Frozen | Clustered)
            averaged = isinstance(share, Personal) and (share.unseen == "mean" or callable(share.unseen))
            if not known or averaged or share.probes or share.individual:
                raise PluresError(
                    f"{block.name!r}: {type(share).__name__} compares or mixes whole models, but clients hold parts of "
                    "the network that differ in size: share the block with everybody, by a metadata column or by "
                    "loss, or keep it personal"
                )
            if self.travelling(block) and self.combine(block).reduce is not None:
                raise PluresError(
                    f"{block.name!r}: a reducer compares whole uploads, but clients hold parts of the network that "
                    "differ in size: combine them by a mean"
                )

    def cut(self, leaves: Iterable[Leaf]) -> list[Leaf]:
        """Those of some leaves of which clients may hold a part only."""
        widths = self.network.widths
        return [] if widths is None else [leaf for leaf in leaves if leaf.path in widths.leaves and self.of_model(leaf)]

    def holding(self, setting: Setting) -> Held | None:
        """What some clients hold; newcomers by what is known of them. ``None`` if the method cuts nothing."""
        sizes, widths = self.sizes, self.network.widths
        if self.held is None or sizes is None or widths is None or setting.clients == self.setting.clients:
            return self.held
        place = {client: number for number, client in enumerate(self.setting.clients)}
        new = [number for number, client in enumerate(setting.clients) if client not in place]
        rows = torch.tensor([place.get(client, 0) for client in setting.clients])
        rates, units = self.held.rates[rows], self.held.units[rows]
        if new:
            theirs = sizes.held(self.network, widths, setting.take(new))
            rates, units = (
                rates.index_copy(0, torch.tensor(new), theirs.rates),
                units.index_copy(0, torch.tensor(new), theirs.units),
            )
        return replace(self.held, rates=rates, units=units)

    def _remember(self) -> None:
        """Add a slot for the wire's memory, which stays with the client."""
        if not self.line.memory:
            return
        if WIRE in self.initial:
            raise PluresError(f"the slot {WIRE!r} holds the memory of wire stages: give the method's own another name")
        module = type(self.network.module)
        self.initial[WIRE] = {name: t[0] for name, t in self.line.memory.items()}
        self.info[WIRE] = {name: LeafInfo(name, module, frozenset(), False) for name in self.line.memory}
        leaves = tuple(Leaf(WIRE, name) for name in self.line.memory)
        self.blocks = (*self.blocks, Block(WIRE, Personal(), leaves))
        self.written |= frozenset(leaves)
        self._travelling[WIRE] = ()

    def _leaving(self) -> tuple[Channel, ...]:
        """Everything that leaves a client, in that order."""
        found = list(FACTS)
        if self.probes:
            size = sum(self.initial["model"][path].nbytes for path in self.probed())
            probed = self._named(Leaf("model", path) for path in self.probed())
            found.append(
                Channel(
                    GRADIENTS,
                    "gradients",
                    f"gradient at the initial model, for parameters of {probed}",
                    size,
                    True,
                )
            )
        through = ", after the wire" if self.line.stages else ""
        moved = self._named(leaf for block in self.blocks for leaf in self.travelling(block) if not self._buffer(leaf))
        followed, read = self._named(self.buffers), self._named(self.view_inputs())
        weighed = [block.name for block in self.blocks if self.weight_bytes(block)]
        carried = (
            (UPDATE, sum(t.nbytes for t in self.line.payload.values()), f"parameters of {moved}{through}"),
            (
                BUFFERS,
                sum(map(self.nbytes, self.buffers)),
                f"running statistics and integers of {followed}",
            ),
            (
                WEIGHTS,
                sum(map(self.weight_bytes, self.blocks)),
                f"weight of the upload of {', '.join(weighed)}, computed from the client's state",
            ),
            (
                VIEWS,
                sum(map(self.nbytes, self.view_inputs())),
                f"personal leaves of {read}, which decide which models a client sees",
            ),
        )
        found += [Channel(name, "train", what, size, True) for name, size, what in carried if size]
        if alone := [block.share for block in self.blocks if block.share.alone]:
            told = [share.epsilon for share in alone if share.epsilon is not None]
            spent = sum(told) if len(told) == len(alone) else None
            what = "which of the models the client chose"
            found.append(Channel(CHOICES, "train", what, NUMBER * len(alone), epsilon=spent))
        if self.line.summed:
            found += masked(len(self.setting))
        return (*found, *TRAINING, *MEASURED)

    def _named(self, leaves: Iterable[Leaf]) -> str:
        """Names of the blocks that some leaves belong to."""
        some = frozenset(leaves)
        return ", ".join(block.name for block in self.blocks if some & frozenset(block.leaves))

    def weight_bytes(self, block: Block) -> int:
        """Bytes of the weights that a client computes itself for its upload of a block."""
        if not self.travelling(block) or not callable(self.combine(block).weights):
            return 0
        given = self.weighed(block, self.initial)
        return given.nbytes if isinstance(given, Tensor) else sum(t.nbytes for t in given.values())

    def _check_channels(self) -> None:
        """Refuse a channel that a stage of the wire forbids."""
        for stage in self.line.stages:
            for channel in self.channels:
                reason = stage.refusal(channel) if channel.name != UPDATE else None
                if reason is not None:
                    raise PluresError(
                        f"wire stage {type(stage).__name__} refuses channel {channel.name!r} ({channel.what}): {reason}"
                    )

    def nbytes(self, leaf: Leaf) -> int:
        """Bytes of a leaf."""
        return self.initial[leaf.slot][leaf.path].nbytes

    def _unchanging(self) -> frozenset[str]:
        """Paths of the model's leaves that no slot ever changes, not even before predicting."""
        changed = self.written | self.written_by(self.method.predictor.adapt)
        still = {leaf for b in self.blocks if isinstance(b.share, Frozen) for leaf in b.leaves} - changed
        return frozenset(
            path
            for path in self.network.info
            if all(Leaf(slot, path) in still for slot, leaves in self.initial.items() if path in leaves)
        )

    def state(self, slots: Mapping[str, Leaves]) -> State:
        """One client's leaves, as functions of the method read them."""
        return State(slots, self.network.fixed)

    def weighed(self, block: Block, slots: Mapping[str, Leaves]) -> Tensor | Leaves:
        """One client's weight in the mean of a block, if given by a function: a scalar, or by ``slot/path``."""
        weigh = self.combine(block).weights
        assert callable(weigh)
        given = weigh(self.state(slots))
        if isinstance(given, Tensor):
            return given
        own = set(self.travelling(block))
        return {str(Leaf(block.slot, k)): t for k, t in given.items() if (block.slot, k) in own}

    def view_inputs(self) -> list[Leaf]:
        """The client's own leaves that views read: the client sends them with its upload."""
        return self._view_inputs

    def probed(self) -> list[str]:
        """Paths of the model whose gradients a client may be asked for: its parameters that are always sent."""
        return self._probed

    def _probed_by_shares(self) -> list[str]:
        slots = {block.slot for block in self.blocks if block.share.probes}
        moved = [leaf for block in self.blocks for leaf in self.travelling(block) if leaf in self.parameters(block)]
        going = {path for slot, path in moved if slot in slots and self.of_model(Leaf(slot, path))}
        return [path for path in self.initial["model"] if path in going]

    def _read_by_views(self) -> list[Leaf]:
        read = {slot for block in self.blocks if isinstance(block.share, View) for slot in block.share.reads}
        own = [leaf for block in self.blocks if not block.share.served for leaf in block.leaves]
        return [leaf for leaf in own if leaf.slot in read and leaf in self.written]

    def local(self) -> Bound:
        """The same method from the view of a single client, which has received its rows."""
        mine = copy.copy(self)
        mine.blocks = tuple(replace(block, share=block.share.local()) for block in self.blocks)
        return mine

    def trained(self, phase: Phase) -> list[Leaf]:
        """Leaves that a phase's gradient steps change: the floating-point parameters it names."""
        return [leaf for leaf in self.selected(phase) if not self._buffer(leaf)]

    def of_model(self, leaf: Leaf) -> bool:
        """Whether a leaf belongs to the network, or to a copy of some of its leaves."""
        (slot, path), model = leaf, self.initial["model"]
        return path in self.network.info and self.initial[slot][path].shape == model[path].shape

    def selected(self, phase: Phase) -> list[Leaf]:
        """Leaves that a phase may change, including buffers but no frozen ones."""
        return [leaf for chosen in address(phase.targets, self.info, "phase") for leaf in chosen]

    def _buffer(self, leaf: Leaf) -> bool:
        slot, path = leaf
        return self.info[slot][path].buffer or not self.initial[slot][path].is_floating_point()

    def kept_by(self, phase: Phase) -> list[Leaf]:
        """Leaves that a phase computes before its steps and keeps."""
        return self._changeable(phase.keeps)

    def _changeable(self, slots: tuple[str, ...]) -> list[Leaf]:
        return [Leaf(slot, path) for slot in slots for path in self.initial[slot] if not self.info[slot][path].frozen]

    def written_by(self, schedule: Schedule) -> frozenset[Leaf]:
        """Leaves that a schedule changes."""
        written: set[Leaf] = set()
        for item in schedule:
            slots = item.keeps if isinstance(item, Phase) else item.writes
            written.update(self._changeable(slots))
            if isinstance(item, Phase):
                written.update(self.selected(item))
        return frozenset(written)

    def parameters(self, block: Block) -> tuple[Leaf, ...]:
        """Leaves of a block that are not buffers."""
        return tuple(leaf for leaf in block.leaves if not self.info[leaf.slot][leaf.path].buffer)

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    def travelling(self, block: Block) -> tuple[Leaf, ...]:
        """Leaves of a block that go up: its share travels, and local work changes them."""
        return self._travelling[block.name]

    @property
    def travels(self) -> bool:
        """Whether anything leaves the clients."""
        return any(self._travelling.values()) or bool(self._view_inputs)

    def combine(self, block: Block) -> Combine:
        """How a block's uploads are combined."""
        rule = self.method.combine
        return rule if isinstance(rule, Combine) else rule.get(block.slot, Combine())

    @property
    def secure_aggregation(self) -> bool:
        """Whether the server needs no more than one weighted sum of all uploads: ``secure_sum`` carries it then."""
        return self.held is None and not any(self._beyond_sums()) and all(stage.adds for stage in self.line.stages)
