"""Movies for 200 users: ratings to predict, movies to recommend, and users that come later."""

from __future__ import annotations

from typing import Any

from plures.cases.case import Case, Part
from plures.cases.newcomers import by_labels

MOVIES, USERS = 500, 200
NEWCOMERS = tuple(
    f"user {number:03}"
    for number in (5, 34, 65, 93, 121, 139, 176, 210, 231, 261, 288, 322, 356, 385, 426, 452, 480, 510, 555, 585)
)
"""Every tenth of these users."""
BUDGET: dict[str, Any] = {
    "model": "matrix_factorization",
    "optimizer": "adam",
    "learning_rates": (0.03, 0.1, 0.3),
    "tune_rounds": 5,
    "rounds": 24,
    "every": 3,
    "seeds": 3,
}


recommendation = Case(
    name="recommendation",
    title="Movies for 200 users who keep their ratings",
    question=(
        "Each user's ratings stay on their device: does a recommender that learns what all users share need factors of "
        "each user's own, and what does it know of a user who has just come?"
    ),
    parts=(
        Part(
            name="ranking",
            title="The next movie among 99 others, by NDCG@10",
            data="movielens_ranking",
            personal=("fedper", "fedrep", "lgfedavg", "ditto", "apfl"),
            options={
                "data_options": {"movies": MOVIES, "clients": USERS},
                "model_options": {"items": MOVIES, "factors": 8},
                "metric": ["ndcg_10", "hit_10"],
                **BUDGET,
            },
            told=("hit_10",),
            worth=0.01,
        ),
        Part(
            name="stars",
            title="Stars of the movies that a user rates next, by RMSE, and 20 users who come later",
            data="movielens",
            personal=("fedper", "ditto", "mrmtl"),
            options={
                "data_options": {"movies": MOVIES, "clients": USERS},
                "model_options": {"items": MOVIES, "factors": 8, "mean": 3.5},
                "metric": ["rmse", "ndcg_10"],
                "unseen": NEWCOMERS,
                **BUDGET,
            },
            told=("ndcg_10",),
            worth=0.01,
            notes=by_labels,
        ),
    ),
    advice=(
        "share what describes the movies and keep what describes the user on the device, as FedPer and FedRep "
        "do; alone, a user knows nothing of movies not rated, and a whole model of each user's own does not "
        "beat what is popular. For stars, one number of each user's own is the best that we found, from about "
        "five ratings on; before that, use the model of all. Ranks among drawn movies flatter every method: "
        "before you launch anything, rank the whole catalogue, on more than one movie of each user."
    ),
)
