"""Four speakers whose digits are known, and two new ones; each of six is new once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from plures.cases.case import Case, Part
from plures.cases.newcomers import everybody
from plures.cases.repeated import repeated
from plures.evaluate import Comparison
from plures.models import with_roles

NEW = (("george", "jackson"), ("lucas", "nicolas"), ("theo", "yweweler"))
"""Pairs of speakers that are held out of training, one after the other."""


def across_time(features: tuple[int, ...], outputs: int, filters: int = 32) -> nn.Module:
    """Two convolutions over the frames of a log-mel picture ``(1, bands, frames)``, and the highest value over time.

    So a word may begin sooner or later, but not be higher or lower in pitch. 10,762 parameters for 32 bands and ten
    digits.
    """
    body = nn.Sequential(
        nn.Flatten(1, 2),
        *(nn.Conv1d(features[1], filters, 5, padding=2), nn.GroupNorm(4, filters), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(filters, filters, 5, padding=2), nn.GroupNorm(4, filters), nn.ReLU()),
        *(nn.AdaptiveMaxPool1d(1), nn.Flatten()),
    )
    return with_roles(nn.Sequential(body, nn.Linear(filters, outputs)), body="0", head="1")


def without(new: tuple[str, str]) -> Part:
    """The other four speakers train, and these two come later."""
    return Part(
        name="-".join(new),
        title=f"Four speakers train; {' and '.join(new)} come later",
        data="spoken_digits",
        personal=("fedper", "fedrep", "fedbabu", "ditto", "apfl"),
        options={
            "unseen": new,
            "model": "plures.cases.speech:across_time",
            "momentum": 0.9,
            "rounds": 40,
            "every": 5,
            "seeds": 2,
            "tune_rounds": 15,
            "learning_rates": (0.005, 0.015),
        },
        worth=0.01,
    )


def together(comparisons: Sequence[Comparison]) -> list[str]:
    """Known speakers, and new ones."""
    return [*repeated(comparisons), *everybody(comparisons)]


speech = Case(
    name="speech",
    title="Six speakers say digits to a machine",
    question=(
        "Does a recogniser of spoken digits need to know its speaker, and how many digits must a new speaker say first?"
    ),
    parts=tuple(map(without, NEW)),
    advice=(
        "a speaker with a few hundred recordings needs nobody else: alone, such a speaker is recognised as well as "
        "with any method. Learn together for the speakers who come later, and start each of them with the common "
        "model. Do not fine-tune a whole model on a handful of recordings; from five on, mix a model of the speaker's "
        "own with the common one, as APFL does, or fit an intercept, which gains less. With a few hundred, fine-tune. "
        "Four speakers are few: look at the worst new speaker, and record more speakers before you try more methods."
    ),
    together=together,
)
