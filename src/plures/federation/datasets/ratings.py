"""Ratings of movies, one client for each user."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.build import from_arrays
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.federation.splits import SplitRule

MOVIES = 9724
"""Movies with a rating, of the 9742 listed."""


@dataset(
    task="ratings: rating of a movie, by its number",
    clients="610 users",
    examples=100836,
    megabytes=0.7,
    licence="GroupLens: research use, redistribution under the same terms, no commercial use",
    source="https://grouplens.org/datasets/movielens/latest/",
    citation="Harper, Konstan: The MovieLens Datasets: History and Context, ACM TiiS 2015",
    files=("movielens_small/movielens_small.npz",),
    how_to_get="save user, item (from 0), rating, timestamp and item_titles of ml-latest-small as one .npz",
)
def movielens(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    movies: int = MOVIES,
    minimum: int = 20,
    clients: int | None = None,
    standardize: bool = False,
) -> Federation:
    """MovieLens ml-latest-small (Harper, Konstan 2015): 610 users, 100836 ratings of 9724 movies in half stars.

    An input is int64 ``(1,)``, the movie: 0 is the one rated most often, so ``movies`` is the size of an embedding
    (see also `movie_titles`). Some movies of a test split were rated by nobody in a train split.

    Args:
        seed: of the choice of users, and of the splits if they are random.
        split: shares of the splits (default ``SplitRule(by="time")``: a user's early ratings train).
        movies: take those rated most often.
        minimum: leave out users with fewer ratings of them.
        clients: take this many users at random; all if None.
        standardize: a regression with targets of mean 0 and standard deviation 1 over all train ratings; otherwise the
            task is ``ratings``, 0.5 to 5 stars, with metrics such as ``ndcg_10``. Train ratings have a mean of 3.5: the
            ``mean`` of `matrix_factorization`.
    """
    if not 1 <= movies <= MOVIES:
        raise PluresError(f"movielens: movies={movies}; give 1 to {MOVIES}")
    rule = split or SplitRule(by="time")
    raw = read(data_folder() / "movielens_small" / "movielens_small.npz")
    movie = np.argsort(by_popularity(raw["item"]))[raw["item"]]
    used = movie < movies
    ratings = np.bincount(raw["user"][used], minlength=int(raw["user"].max()) + 1)
    users = np.flatnonzero(ratings >= max(minimum, 1))
    if clients is not None:
        if not 1 <= clients <= len(users):
            raise PluresError(
                f"movielens: clients={clients}, but {len(users)} users have {minimum} ratings of these movies; "
                f"give 1 to {len(users)}"
            )
        users = np.sort(generator(seed, "clients", "movielens").choice(users, clients, replace=False))
    used &= np.isin(raw["user"], users)
    return from_arrays(
        movie[used][:, None],
        raw["rating"][used].astype(np.float32),
        named_users(raw["user"][used]),
        time=raw["timestamp"][used] if rule.by == "time" else None,
        name="movielens",
        task="regression" if standardize else "ratings",
        columns=("movie",),
        metadata={"ratings": dict(zip(named_users(users).tolist(), ratings[users].tolist(), strict=True))},
        split=rule,
        seed=0 if rule.by == "time" else seed,
        dtype=torch.int64,
        standardize_targets=standardize,
        source="MovieLens ml-latest-small, GroupLens: research use, redistribution under the same terms, no commerce",
    )


def movie_titles() -> tuple[str, ...]:
    """Title of each movie number of `movielens`."""
    raw = read(data_folder() / "movielens_small" / "movielens_small.npz")
    return tuple(raw["item_titles"][by_popularity(raw["item"])[:MOVIES]].tolist())


def named_users(user: NDArray[np.int64]) -> NDArray[np.str_]:
    """Names of users, numbered from 0."""
    return np.char.add("user ", np.char.zfill((user + 1).astype(str), 3))


def by_popularity(item: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Movies of the file, the most rated first, ties in the file's order."""
    return np.argsort(-np.bincount(item, minlength=int(item.max()) + 1), kind="stable")
