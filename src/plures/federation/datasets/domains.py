"""Digits of several origins: the same ten classes, different pictures (feature shift)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation.build import from_arrays
from plures.federation.datasets.card import dataset
from plures.federation.datasets.images import DIGITS, cifar10, mnist, usps
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.federation.shift import rotate
from plures.federation.splits import SplitRule

DOMAINS = ("MNIST", "USPS", "blended MNIST")
SIZE = 28
SHARD = 10000
DIGITS_IN = {"MNIST": 70000, "USPS": 9298}


@dataset(
    task="classification: 10 digits of several origins, 3 x 28 x 28",
    clients="3 domains: MNIST, USPS, MNIST blended with CIFAR-10 patches",
    examples=3717,
    megabytes=29.6,
    licence="CC BY-SA 3.0 (MNIST); research data without an explicit licence (USPS, CIFAR-10)",
    source="https://github.com/med-air/FedBN",
    citation="Li, Jiang, Zhang, Kamp, Dou: FedBN: Federated Learning on Non-IID Features via Local Batch "
    "Normalization, ICLR 2021; Ganin et al.: Domain-Adversarial Training of Neural Networks, JMLR 2016",
    files=(
        *("mnist/train.npz", "mnist/test.npz", "usps/usps.npz"),
        *("cifar10/test_x.npy.xz", "cifar10/test_y.npz"),
    ),
    how_to_get="see the data sets mnist, usps and cifar10",
)
def digits(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    domains: Sequence[str] = DOMAINS,
    clients_per_domain: int = 1,
    examples: int = 1239,
    standardize: bool = True,
) -> Federation:
    """Digits ``(3, 28, 28)`` of MNIST, USPS (grown from 16 x 16) and blended MNIST (see `blend`), after FedBN.

    Li, Jiang, Zhang, Kamp, Dou 2021 train on 743 pictures of each domain: 1239 are 743 train, 186 validation and 310
    test pictures. Their SVHN and SynthDigits are not here. No digit of MNIST is in two clients, blended or not.

    Args:
        seed: of the choice of pictures, of the patches and of the splits.
        split: shares of the splits.
        domains: among ``MNIST``, ``USPS`` and ``blended MNIST``; metadata column "domain".
        clients_per_domain: how many clients have pictures of one domain.
        examples: pictures of a client.
        standardize: each channel to mean 0 and standard deviation 1 over all train pictures; otherwise 0 to 1.
    """
    if not domains or len(set(domains)) < len(domains) or not set(domains) <= set(DOMAINS):
        raise PluresError(f"digits: domains {', '.join(domains)}; give some of {', '.join(DOMAINS)}, each once")
    if clients_per_domain < 1 or examples < 1:
        raise PluresError(f"digits: {clients_per_domain} clients of {examples} examples; give at least 1 of each")
    each = clients_per_domain * examples
    wanted = {"MNIST": each * sum(domain != "USPS" for domain in domains), "USPS": each * ("USPS" in domains)}
    for origin, number in wanted.items():
        if number > DIGITS_IN[origin]:
            raise PluresError(f"digits: {number} pictures of {DIGITS_IN[origin]} in {origin}; lower examples")
    stock = {
        "MNIST": lambda n: mnist(seed=seed, partition="iid", clients=1, examples=n, standardize=False),
        "USPS": lambda n: usps(seed=seed, partition="iid", clients=1, examples=n, standardize=False, size=SIZE),
    }
    pools = {}
    for origin, number in wanted.items():
        if number:
            pool = stock[origin](number)
            order = torch.from_numpy(generator(seed, "digits", origin).permutation(number))
            pools[origin] = (pool.one_input(origin)[order], pool.targets[order])
    pictures, labels, client, facts = [], [], [], {}
    for domain in sorted(domains):
        blended = domain == "blended MNIST"
        own = slice(-each, None) if blended else slice(each)
        grey, targets = (values[own] for values in pools["MNIST" if blended else domain])
        if blended:
            number = min(each, SHARD)
            things = cifar10(
                seed=seed, shards=("test",), partition="iid", clients=1, examples=number, standardize=False
            )
            pictures.append(blend(grey, things.one_input("CIFAR-10"), seed=seed))
        else:
            pictures.append(grey.expand(-1, 3, -1, -1))
        labels.append(targets)
        for number in range(clients_per_domain):
            name = f"{domain} {number:0{len(str(clients_per_domain - 1))}}" if clients_per_domain > 1 else domain
            client += [name] * examples
            facts[name] = {"domain": domain}
    return from_arrays(
        torch.cat(pictures),
        torch.cat(labels),
        np.array(client),
        name="digits",
        classes=DIGITS,
        columns=("red", "green", "blue"),
        metadata=facts,
        split=split,
        seed=seed,
        standardize=standardize,
        source="MNIST, CC BY-SA 3.0; USPS and CIFAR-10 (patches), research data without an explicit licence",
    )


def blend(digits: Tensor, backgrounds: Tensor, *, seed: int = 0) -> Tensor:
    """Digits over random patches, ``|patch - digit|``: MNIST-M (Ganin et al. 2016; theirs are from BSDS500).

    Args:
        digits: ``(n, 1, height, width)`` in [0, 1], 1 is ink.
        backgrounds: ``(m, channels, >= height, >= width)`` in [0, 1].
        seed: of background and place of each patch.

    Returns:
        ``(n, channels, height, width)`` in [0, 1].
    """
    n, _, height, width = digits.shape
    room = [backgrounds.shape[2] - height, backgrounds.shape[3] - width]
    if min(room) < 0:
        raise PluresError(f"blend: backgrounds {tuple(backgrounds.shape[2:])} are smaller than {(height, width)}")
    rng = generator(seed, "blend")
    which = rng.integers(len(backgrounds), size=n).tolist()
    tops, lefts = (rng.integers(free + 1, size=n).tolist() for free in room)
    patches = [
        backgrounds[i, :, top : top + height, left : left + width]
        for i, top, left in zip(which, tops, lefts, strict=True)
    ]
    return (torch.stack(patches) - digits).abs()


@dataset(
    task="classification: 10 digits turned by the angle of the client, 28 x 28",
    clients="100 in 4 groups of one angle each",
    examples=20000,
    megabytes=11.5,
    licence="CC BY-SA 3.0",
    source="http://yann.lecun.com/exdb/mnist/",
    citation="Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning, NeurIPS 2020",
    files=("mnist/train.npz", "mnist/test.npz"),
    how_to_get="see the data set mnist",
)
def rotated_mnist(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    clients: int = 100,
    examples: int = 200,
    degrees: Sequence[float] = (0, 90, 180, 270),
    standardize: bool = True,
) -> Federation:
    """Rotated MNIST of IFCA (Ghosh, Chung, Yin, Ramchandran 2020): k groups of clients, one angle each.

    The paper turns every digit by all k angles, so a digit is in k clients; here it is in one.

    Args:
        seed: of the choice of digits, the clients and the splits.
        split: shares of the splits.
        clients: m of the paper; client i turns by ``degrees[i mod k]``, metadata column "rotation".
        examples: n of the paper, digits of a client.
        degrees: one angle for each group.
        standardize: pixels to mean 0 and standard deviation 1 over all train digits; otherwise 0 to 1.
    """
    dealt = mnist(
        seed=seed,
        split=split,
        partition="iid",
        clients=clients,
        examples=clients * examples,
        standardize=standardize,
    )
    return rotate(dealt, degrees)
