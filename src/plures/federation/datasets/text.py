"""Shakespeare's roles: the next character of what each of them says."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from plures.errors import PluresError, check_choice
from plures.federation.build import from_arrays
from plures.federation.build.options import Options
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.federation.splits import SplitRule
from plures.tasks import Classification, NextToken, Task

CHARACTERS = "\n !$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
"""The vocabulary: token i of inputs and targets is ``CHARACTERS[i]``, in any selection of roles."""

PASSAGE = 5


@dataset(
    task="classification: the next of 76 characters after 80; or next_token: after each",
    clients="447 roles with 2000 characters (default 100 of them)",
    examples=40268,
    megabytes=1.9,
    licence="public domain",
    source="https://github.com/TheMITTech/shakespeare",
    citation="McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks "
    "from Decentralized Data, AISTATS 2017; Caldas et al.: LEAF, arXiv:1812.01097, 2018",
    files=("shakespeare/speeches.jsonl.gz", "shakespeare/plays.json"),
    how_to_get="save one JSON object a line with play, role and text, in the order of the plays, and the titles "
    "as a JSON object",
)
def shakespeare(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    task: Task | str | None = None,
    length: int = 80,
    stride: int | None = None,
    minimum: int = 2000,
    clients: int | None = 100,
    examples: int | None = 500,
) -> Federation:
    """Shakespeare by role (McMahan et al. 2017; LEAF, Caldas et al. 2018): the next of 76 characters.

    A role's speeches in the order of the play, joined by line breaks, are cut into passages of five times
    ``length + 1`` characters. Windows begin every ``stride`` characters and end in the passage they begin in, and a
    passage is in one split: so no character of a test window was ever seen in training, where LEAF's windows overlap.

    Args:
        seed: of the choice of roles and windows, and of the splits if they are random.
        split: shares of the splits (default ``SplitRule(by="time")``: the early passages train).
        task: ``classification`` (default): the character after the window; ``next_token``: that after each of its
            characters; or either as an object.
        length: characters of an input, int64 ``(length,)``.
        stride: characters from one window to the next (default 10; with ``next_token`` ``length``, so that no character
            is predicted twice).
        minimum: least number of characters that a role speaks (447 of 1378 roles speak 2000).
        clients: take this many of these roles at random; all if None.
        examples: take at most this many windows of a role at random; all if None.
    """
    if isinstance(task, str):
        check_choice("shakespeare: task", task, (Classification.kind, NextToken.kind))
    every = NextToken() if task == NextToken.kind else task if isinstance(task, NextToken) else None
    stride = (10 if every is None else length) if stride is None else stride
    counts = (("length", length), ("stride", stride), ("minimum", minimum), ("clients", clients))
    for option, value in (*counts, ("examples", examples)):
        if value is not None and value < 1:
            raise PluresError(f"shakespeare: {option}={value}; give at least 1")
    rule = split or SplitRule(by="time")
    folder = data_folder() / "shakespeare"
    titles = json.loads((folder / "plays.json").read_text(encoding="utf-8"))
    speeches: dict[tuple[str, str], list[str]] = defaultdict(list)
    with gzip.open(folder / "speeches.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            speech = json.loads(line)
            speeches[speech["play"], speech["role"]].append(speech["text"])
    texts = {role: "\n".join(said) for role, said in speeches.items()}
    roles = sorted(role for role, text in texts.items() if len(text) >= max(minimum, length + 1))
    if clients is not None:
        if clients > len(roles):
            raise PluresError(
                f"shakespeare: clients={clients}, but {len(roles)} roles speak {minimum} characters; lower one of them"
            )
        chosen = generator(seed, "clients", "shakespeare").choice(len(roles), clients, replace=False)
        roles = [roles[i] for i in np.sort(chosen)]
    code = np.zeros(128, dtype=np.int64)
    code[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    windows, passages, begins, client, metadata = [], [], [], [], {}
    for play, role in roles:
        name = f"{titles[play]}: {role}"
        text = code[np.frombuffer(texts[play, role].encode("ascii"), np.uint8)]
        size = PASSAGE * (length + 1)
        begin = np.arange(0, len(text) - length, stride)
        begin = begin[begin // size == (begin + length) // size]
        if examples is not None and len(begin) > examples:
            begin = np.sort(generator(seed, "examples", name).choice(begin, examples, replace=False))
        windows.append(text[begin[:, None] + np.arange(length + 1)])
        passages.append(begin // size)
        begins.append(begin)
        client.append(np.full(len(begin), name))
        metadata[name] = {"play": titles[play], "speeches": len(speeches[play, role]), "characters": len(text)}
    joined = np.concatenate(windows)
    options: Options = {
        "name": "shakespeare",
        "metadata": metadata,
        "split": rule,
        "seed": 0 if rule.by == "time" else seed,
        "dtype": torch.int64,
        "source": "The plays of Shakespeare (Moby text), public domain",
    }
    named = tuple({"\n": "newline", " ": "space"}.get(letter, letter) for letter in CHARACTERS)
    if every is None:
        options["classes"] = named
    else:
        options["task"] = every if every.vocabulary else replace(every, vocabulary=len(named), tokens=named)
    federation = from_arrays(
        joined[:, :-1],
        joined[:, -1] if every is None else joined[:, 1:],
        np.concatenate(client),
        groups=np.concatenate(passages),
        time=np.concatenate(begins) if rule.by == "time" else None,
        **options,
    )
    return federation.with_task(task) if every is None and isinstance(task, Task) else federation
