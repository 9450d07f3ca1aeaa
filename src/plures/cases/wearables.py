"""Twenty people who wear a phone, and ten new ones."""

from __future__ import annotations

from plures.cases.case import Case, Part
from plures.cases.newcomers import by_labels

NEW = tuple(f"subject {number}" for number in range(21, 31))
"""People who are held out of training: the last ten, whoever they are."""

wearables = Case(
    name="wearables",
    title="A phone recognises what its owner does",
    question="How good is recognition for a new person who labels 0, 1, 5 or 20 windows of 2.56 s?",
    parts=(
        Part(
            name="own",
            title="20 people train and 10 come later; no recording is in two splits",
            data="har",
            personal=("fedper", "fedrep", "fedbabu", "ditto", "apfl"),
            options={
                "unseen": NEW,
                "rounds": 10,
                "every": 2,
                "seeds": 2,
                "tune_rounds": 3,
                "learning_rates": (0.03, 0.1),
            },
            told=("balanced_accuracy",),
            worth=0.01,
            notes=by_labels,
        ),
    ),
    advice=(
        "give a new person the model of the others and ask for nothing: it is better than what fine-tuning makes of it "
        "with one, five or twenty labelled windows, which show too little of most activities. Personalise the people "
        "whose recordings you have, and wait with a newcomer until there are a few hundred windows; if you must use a "
        "handful, fit an intercept and nothing else. Test on whole recordings, because neighbouring windows share half "
        "of their samples."
    ),
)
