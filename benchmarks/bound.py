"""What a round can cost: the work of a line of the speed table, written by hand for one network in plain PyTorch.

One epoch of SGD on every client, batches of ten, and accuracy and loss of every client's model on its training and test
data. The dense networks train in stacks whose finished clients drop out, with gradients written by hand, products that
update the weights in place, and no loss computed; the convolutional one trains one client after the other, through
autograd, with its channels last. Times are those of the process (CPU seconds), so that they can be taken beside other
work; with ``--wall``, on a quiet machine, also two threads with half of the clients each.

    python -m benchmarks.bound
    python -m benchmarks.bound --models cnn --wall
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed import MODELS, RATE, Conventional, Setting, both, federation, prepared, tight_round
from plures import Execution, Federation
from plures.run.allocator import keep_freed_memory

BATCH, CHUNK = 10, 10
LAST = torch.channels_last
Found = list[tuple[int, Any]]
"""Clients, and what their models are."""


class Dense:
    """Layers with ReLU between them, trained in stacks; values are ``(clients, outputs, batch)``."""

    def __init__(self, network: nn.Module, data: Federation) -> None:
        layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
        self.weights = [m.weight.detach() for m in layers]
        self.biases = [m.bias.detach().unsqueeze(1) for m in layers]
        self.inputs, self.targets, self.splits = data.inputs.flatten(1), data.targets, data.splits

    def train(self, clients: list[int]) -> Found:
        """Clients with the most examples first; those that are done are the last ones of the stack."""
        count, train = len(clients), self.splits["train"]
        sizes = [int(train.sizes[i]) for i in clients]
        steps = [-(-size // BATCH) for size in sizes]
        rows = torch.zeros(steps[0], count, BATCH, dtype=torch.int64)
        rates = torch.zeros(steps[0], count, 1, BATCH)
        for place, (client, size, own) in enumerate(zip(clients, sizes, steps, strict=True)):
            drawn = train[client][torch.randperm(size)]
            rows[:own, place] = torch.cat([drawn, drawn[-1:].expand(own * BATCH - size)]).view(own, BATCH)
            real = (torch.arange(own * BATCH) < size).view(own, BATCH).float()
            rates[:own, place, 0] = RATE * real / real.sum(1, keepdim=True)
        wanted = torch.eye(10)[self.targets[rows]].mT * rates
        weights = [w.expand(count, *w.shape).clone() for w in self.weights]
        biases = [b.expand(count, *b.shape).clone() for b in self.biases]
        memory = torch.empty(count * BATCH, self.inputs.shape[1])
        for step in range(steps[0]):
            active = sum(own > step for own in steps)
            w, b = [t[:active] for t in weights], [t[:active] for t in biases]
            x = torch.index_select(self.inputs, 0, rows[step, :active].flatten(), out=memory[: active * BATCH])
            values = [x.view(active, BATCH, -1).mT]
            for weight, bias in zip(w, b, strict=True):
                made = torch.baddbmm(bias, weight, values[-1])
                values.append(made if weight is w[-1] else made.relu_())
            slope = values.pop().softmax(1).mul_(rates[step, :active]).sub_(wanted[step, :active])
            for weight, bias, given in zip(w[::-1], b[::-1], values[::-1], strict=True):
                below = None if given is values[0] else torch.bmm(weight.mT, slope).mul_(given > 0)
                bias.sub_(slope.sum(2, keepdim=True))
                weight.baddbmm_(slope, given.mT, alpha=-1)
                slope = slope if below is None else below
        return [(client, [[t[place] for t in ts] for ts in (weights, biases)]) for place, client in enumerate(clients)]

    def outputs(self, held: Any, rows: Tensor) -> Tensor:
        """``(examples, outputs)`` of one client's model."""
        x = self.inputs.index_select(0, rows).t()
        for number, (weight, bias) in enumerate(zip(*held, strict=True)):
            x = torch.addmm(bias, weight, x)
            x = x if number == len(held[0]) - 1 else x.relu_()
        return x.t()

    piece = 512


class Convolutional:
    """One client after the other, through autograd, with channels last."""

    def __init__(self, network: nn.Module, data: Federation) -> None:
        self.network = network
        self.inputs, self.targets, self.splits = data.inputs, data.targets, data.splits

    def train(self, clients: list[int]) -> Found:
        found, network = [], copy.deepcopy(self.network).to(memory_format=LAST)  # type: ignore[call-overload]
        parameters = list(network.parameters())
        start = [p.detach().clone() for p in parameters]
        for client in clients:
            with torch.no_grad():
                torch._foreach_copy_(parameters, start)
            rows = self.splits["train"][client]
            for index in rows[torch.randperm(len(rows))].split(BATCH):
                with torch.enable_grad():
                    loss = F.cross_entropy(network(self.taken(index)), self.targets[index])
                grads = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, grads, alpha=-RATE)
            found.append((client, copy.deepcopy(network)))
        return found

    def taken(self, rows: Tensor) -> Tensor:
        return self.inputs.index_select(0, rows).contiguous(memory_format=LAST)

    def outputs(self, held: Any, rows: Tensor) -> Tensor:
        made: Tensor = held(self.taken(rows))
        return made

    piece = 64


def tested(work: Dense | Convolutional, found: Found) -> list[tuple[Tensor, Tensor]]:
    """Sums of losses and of right answers of every client's model on its own data."""
    told = []
    for client, held in found:
        for split in ("train", "test"):
            for rows in work.splits[split][client].split(work.piece):
                outputs, targets = work.outputs(held, rows), work.targets[rows]
                told.append((F.cross_entropy(outputs, targets, reduction="sum"), (outputs.argmax(1) == targets).sum()))
    return told


def halves(data: Federation, parts: int) -> list[list[int]]:
    """Clients in parts with about as many examples, by decreasing number of them."""
    sizes = data.splits["train"].sizes
    shares: list[list[int]] = [[] for _ in range(parts)]
    for client in sizes.argsort(descending=True).tolist():
        min(shares, key=lambda share: int(sizes[share].sum())).append(client)
    return shares


def one_round(work: Dense | Convolutional, clients: list[int]) -> None:
    with torch.no_grad():
        for first in range(0, len(clients), CHUNK):
            tested(work, work.train(clients[first : first + CHUNK]))


def least(clock: Callable[[], float], run: Callable[[], object], repeats: int) -> float:
    """Milliseconds of the fastest of some repeats."""
    times = []
    for _ in range(repeats):
        begun = clock()
        run()
        times.append(clock() - begun)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", default=["ragged"])
    parser.add_argument("--wall", action="store_true", help="also two threads, by the clock on the wall")
    options = parser.parse_args()
    keep_freed_memory()
    print("| model | sizes | threads | tight loop, training ms | conventional ms | by hand ms | plures ms |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        for sizes in options.sizes:
            setting = Setting(name, 20, BATCH, sizes)
            data, repeats = federation(setting), 2 if name == "cnn" else 5
            network = MODELS[name](data.features, 10)
            work = Convolutional(network, data) if name == "cnn" else Dense(network, data)
            how = Execution("loop", 20, False, "float32") if name == "cnn" else recorded()
            ours, usual = prepared(setting, data, how), Conventional(network, data, BATCH)
            both(ours)
            for threads in (1, 2) if options.wall else (1,):
                torch.set_num_threads(threads)
                clock = time.perf_counter if options.wall else time.process_time
                with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                    parts = halves(data, threads)

                    def by_hand() -> None:
                        list(pool.map(lambda clients: one_round(work, clients), parts))  # noqa: B023

                    figures = [
                        least(clock, lambda: tight_round(network, data, BATCH), repeats),  # noqa: B023
                        least(clock, usual.round, 2),
                        least(clock, by_hand, repeats),
                        least(clock, lambda: both(ours), repeats),  # noqa: B023
                    ]
                print(f"| {name} | {sizes} | {threads} | {' | '.join(f'{x:.0f}' for x in figures)} |", flush=True)


def recorded() -> Execution:
    return Execution("vmap", 20, False, "float32", capture=True)


if __name__ == "__main__":
    main()
