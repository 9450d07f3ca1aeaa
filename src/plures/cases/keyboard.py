"""A keyboard that suggests the next character: every author has a phone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from plures.cases.answer import of, whole
from plures.cases.case import Case, Part
from plures.evaluate import Comparison
from plures.federation import Federation, Split, SplitName, load
from plures.method import Adam, Frozen, Method, Personal, Phase, head
from plures.methods import METHODS
from plures.methods.entry import entry
from plures.models import char_transformer
from plures.report.columns import Number
from plures.run import Cosine, Execution, Run, Training

AUTHORS: dict[str, Any] = {"task": "next_token", "minimum": 8000, "clients": 10, "examples": 100}
STEPS = 2000


def public_text() -> Federation:
    """All that other roles say, as training data of one client."""
    authors = load("shakespeare", **AUTHORS).clients
    text = load("shakespeare", task="next_token", clients=None, examples=None)
    others = [place for place, name in enumerate(text.clients) if name not in authors]
    rows = torch.cat([split[place] for split in text.splits.values() for place in others])
    none = Split.of([rows[:0]])
    splits: dict[SplitName, Split] = {"train": Split.of([rows]), "validation": none, "test": none}
    return replace(text, name="public text", clients=("public",), metadata={}, splits=splits)


def published(quick: bool) -> nn.Module:
    """A small transformer trained on public text; if ``quick``, for two steps only.

    It is trained in one way whatever the machine's load, so that an interrupted case finds the same network again.
    """
    public = public_text()

    def network() -> nn.Module:
        return char_transformer(
            tuple(public.one_input("a keyboard").shape[1:]), public.task.outputs, layers=1, every_position=True
        )

    rounds, steps = (1, 2) if quick else (25, STEPS // 25)
    training = Training(rounds, 16, steps=steps, optimizer=Adam(0.004), schedule=Cosine())
    run = Run(public, network, METHODS["local"](), training, execution=Execution("loop", 1, False))
    for _ in run.rounds():
        pass
    trained = network()
    trained.load_state_dict({name: values[0] for name, values in run.predictors([0]).items()})
    return trained


@entry("Personal head", "split model", "Yosinski et al. 2014, NeurIPS")
def personal_head() -> Method:
    """A head of each author's own on the published network, which nobody else trains; nothing is sent."""
    return Method(layout={head: Personal(), "model": Frozen()}, schedule=(Phase(train=(head,)),))


@entry("As published", "baseline", "mandatory baseline", rounds=1)
def as_published() -> Method:
    """The network that everybody starts from, which nobody changes."""
    return Method(layout={head: Personal(), "model": Frozen()}, schedule=(Phase(train=(head,), steps=0),))


def adapters_against_heads(comparison: Comparison) -> list[str]:
    """The published network, LoRA and a personal head, by both metrics and by what travels."""
    metric, accuracy = comparison.metric, next(card for card in comparison.others if card.name == "accuracy")
    shown = [method for method in comparison.methods if of(method.name, ON_THE_PUBLISHED)]
    number = Number.among(metric, [whole(method, metric) for method in shown])
    share = Number.among(accuracy, [whole(method, accuracy) for method in shown])
    return [
        f"{method.title}: {metric.title} {number(whole(method, metric))}, accuracy {share(whole(method, accuracy))} %, "
        f"{method.bytes_up / 1000:.1f} kB sent by an author in a round."
        for method in shown
    ]


LORA, OF_ALL, BETWEEN, BOTH = (
    f"lora({options})"
    for options in (
        "share=personal,heads=frozen",
        "share=shared,heads=frozen",
        "share=shared,average=a,heads=frozen",
        "share=shared,heads=personal",
    )
)
PUBLISHED, HEAD = "plures.cases.keyboard:as_published", "plures.cases.keyboard:personal_head"
ON_THE_PUBLISHED = (PUBLISHED, OF_ALL, LORA, BETWEEN, BOTH, HEAD)
"""Methods that leave the body of the published network as it is."""


keyboard = Case(
    name="keyboard",
    title="A keyboard for ten authors",
    question=(
        "Our phones have a small language model from public text: is it worth adapting it to each author, with LoRA or "
        "with a head of their own, or should authors train it together?"
    ),
    parts=(
        Part(
            name="own",
            title="10 authors and a transformer trained on what 437 others say, by perplexity",
            data="shakespeare",
            start=published,
            personal=(LORA, BETWEEN, BOTH, HEAD, "fedper"),
            shared=(PUBLISHED, OF_ALL),
            options={
                "data_options": AUTHORS,
                "metric": ["perplexity", "accuracy"],
                "optimizer": "adam",
                "learning_rates": (0.0002, 0.001),
                "tune_rounds": 2,
                "rounds": 5,
                "every": 1,
                "seeds": 2,
                "batch_size": 16,
            },
            told=("accuracy",),
            worth=0.06,
            notes=adapters_against_heads,
        ),
    ),
    advice=(
        "ship the published network and adapt nothing yet. With about 4800 characters of each author, the best of all "
        "methods lowers perplexity by a hundredth and leaves accuracy as it is, because these authors write as the "
        "public text does. If your authors differ more or write more, begin with a head of each author's own on the "
        "device: here it is no worse than LoRA and sends nothing. Look at validation text before you switch it on, for "
        "an author whom adapting harms does not complain."
    ),
)
