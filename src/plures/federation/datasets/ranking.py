"""Movies to recommend: each user's latest movie among movies that the user never rated."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.datasets.ratings import MOVIES, by_popularity, named_users
from plures.federation.federation import Federation
from plures.federation.seeding import generator
from plures.federation.splits import SPLITS, Split
from plures.tasks import Ratings


@dataset(
    task="ratings: 1 for a movie that the user rated, 0 for one drawn among the others",
    clients="586 users",
    examples=206_000,
    megabytes=0.7,
    licence="GroupLens: research use, redistribution under the same terms, no commercial use",
    source="https://grouplens.org/datasets/movielens/latest/",
    citation="He, Liao, Zhang, Nie, Hu, Chua: Neural Collaborative Filtering, WWW 2017",
    files=("movielens_small/movielens_small.npz",),
    how_to_get="save user, item (from 0), rating, timestamp and item_titles of ml-latest-small as one .npz",
)
def movielens_ranking(
    *,
    seed: int = 0,
    movies: int = 2000,
    minimum: int = 20,
    clients: int | None = None,
    latest: int = 50,
    negatives: int = 2,
    candidates: int = 99,
) -> Federation:
    """MovieLens ml-latest-small as a ranking, by the protocol of He et al. 2017: leave one out, 99 candidates.

    A user's latest movie is in the test split, the one before it in the validation split, each with ``candidates``
    movies that the user never rated. Everything is drawn once, so all methods and seeds rank the same movies: with
    these targets, ``hit_10`` says whether the movie is among the first ten of a hundred, and ``ndcg_10`` is
    ``1 / log2(1 + place)`` there. Earlier movies train, with ``negatives`` others for each, among which the held-out
    movies may be. Ranks among drawn movies flatter a model and need not order models as ranks among all movies do
    (Krichene, Rendle 2020).

    Args:
        seed: of the choice of users and of all draws.
        movies: take those rated most often. An input is int64 ``(1,)``, the movie; 0 is the one rated most often.
        minimum: leave out users with fewer ratings of them, at least 3.
        clients: take this many users at random; all if None.
        latest: at most this many train movies of a user, the latest ones.
        negatives: movies drawn for each train movie.
        candidates: movies drawn beside each held-out movie.
    """
    least = {"minimum": 3, "latest": 1, "negatives": 0, "candidates": 1}
    for (option, low), value in zip(least.items(), (minimum, latest, negatives, candidates), strict=True):
        if value < low:
            raise PluresError(f"movielens_ranking: {option}={value}; give at least {low}")
    if not 1 <= movies <= MOVIES:
        raise PluresError(f"movielens_ranking: movies={movies}; give 1 to {MOVIES}")
    raw = read(data_folder() / "movielens_small" / "movielens_small.npz")
    movie = np.argsort(by_popularity(raw["item"]))[raw["item"]]
    order = np.lexsort((raw["timestamp"], raw["user"]))
    order = order[movie[order] < movies]
    by_user = np.split(movie[order], np.flatnonzero(np.diff(raw["user"][order])) + 1)
    known = {int(user): own for user, own in zip(np.unique(raw["user"][order]), by_user, strict=True)}
    users = [user for user, own in known.items() if minimum <= len(own) <= movies - candidates]
    if clients is not None:
        if not 1 <= clients <= len(users):
            raise PluresError(
                f"movielens_ranking: clients={clients}, but {len(users)} users have {minimum} ratings of these movies; "
                f"give 1 to {len(users)}"
            )
        drawn = generator(seed, "clients", "movielens").choice(users, clients, replace=False)
        users = np.sort(drawn).tolist()
    elif not users:
        raise PluresError(f"movielens_ranking: no user has {minimum} ratings of {movies} movies; lower minimum")
    names = named_users(np.array(users)).tolist()
    parts = [
        _parts(known[user], movies, latest, negatives, candidates, seed, name)
        for user, name in zip(users, names, strict=True)
    ]
    sizes = np.array([[len(x) for x, _ in part] for part in parts])
    ends = sizes.cumsum().reshape(sizes.shape)
    splits = {
        name: Split.of([torch.arange(end - size, end) for end, size in zip(ends[:, i], sizes[:, i], strict=True)])
        for i, name in enumerate(SPLITS)
    }
    flat = [piece for part in parts for piece in part]
    return Federation(
        name="movielens_ranking",
        task=Ratings(1, liked=1.0),
        inputs=torch.from_numpy(np.concatenate([x for x, _ in flat]))[:, None],
        targets=torch.from_numpy(np.concatenate([y for _, y in flat]))[:, None],
        clients=tuple(names),
        splits=splits,
        metadata={"ratings": tuple(len(known[user]) for user in users)},
        columns=("movie",),
        source="MovieLens ml-latest-small, GroupLens: research use, redistribution under the same terms, no commerce",
    )


Pieces = tuple[NDArray[np.int64], NDArray[np.float32]]


def _parts(
    own: NDArray[np.int64], movies: int, latest: int, negatives: int, candidates: int, seed: int, name: str
) -> list[Pieces]:
    """Movies and targets of a user's splits; ``own`` are the movies rated, the latest last."""
    train = own[:-2][-latest:]
    never = np.setdiff1d(np.arange(movies), own)
    others = np.setdiff1d(np.arange(movies), own[:-2])
    draw = generator(seed, "negatives", name).choice
    number = min(negatives * len(train), len(others))
    rest = [draw(others, number, replace=False), *(draw(never, candidates, replace=False) for _ in range(2))]
    return [
        (np.concatenate([yes, no]), np.repeat(np.array([1, 0], np.float32), [len(yes), len(no)]))
        for yes, no in zip((train, own[-2:-1], own[-1:]), rest, strict=True)
    ]
