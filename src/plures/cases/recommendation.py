"""Movies for 200 users who keep their ratings: what is popular, or factors of each user's own."""

from __future__ import annotations

from plures.cases.case import Case, Part

MOVIES, USERS = 500, 200

recommendation = Case(
    name="recommendation",
    title="Movies for 200 users who keep their ratings",
    question=(
        "Each user's ratings stay on their device: is it enough to recommend what is popular, or does a recommender "
        "need factors of each user's own?"
    ),
    parts=(
        Part(
            name="ranking",
            title="The next movie among 99 others, by NDCG@10",
            data="movielens_ranking",
            personal=("fedper", "fedrep", "lgfedavg", "ditto", "apfl"),
            options={
                "data_options": {"movies": MOVIES, "clients": USERS},
                "model": "matrix_factorization",
                "model_options": {"items": MOVIES, "factors": 8},
                "metric": ["ndcg_10", "hit_10"],
                "optimizer": "adam",
                "learning_rates": (0.03, 0.1, 0.3),
                "tune_rounds": 5,
                "rounds": 24,
                "every": 3,
                "seeds": 3,
            },
            told=("hit_10",),
        ),
    ),
    advice=(
        "share what describes the movies and keep what describes the user on the device, as FedPer and FedRep do; "
        "alone, a user knows nothing of movies not rated, and a whole model of each user's own does not beat "
        "what is popular. Always show what is popular beside it. Ranks among drawn movies flatter every method: before "
        "you launch anything, rank the whole catalogue, on more than one movie of each user."
    ),
)
