"""The loaders of text, ratings, graphs, air, domains and tables against the published numbers and the raw files."""

from __future__ import annotations

import gzip
import json
import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from located import needs
from plures.errors import PluresError
from plures.federation import SPLITS, Federation, SplitRule, blend, load, locate, movie_titles, seasons
from plures.federation.datasets.fleets import seen
from plures.federation.datasets.folder import read
from plures.federation.datasets.ratings import by_popularity
from plures.federation.datasets.text import CHARACTERS
from plures.tasks import Classification, NextToken


def quiet(name: str, **options: object) -> Federation:
    """Some natural clients are thin, and the loader says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(name, **options)


def rows_of(federation: Federation, client: str) -> torch.Tensor:
    number = federation.index(client)
    return torch.cat([federation.splits[split][number] for split in SPLITS])


def raw(name: str, file: str) -> dict[str, NDArray]:
    return read(locate(name) / file)


def words(tokens: torch.Tensor) -> str:
    return "".join(CHARACTERS[token] for token in tokens.tolist())


@needs("shakespeare")
def test_shakespeare_windows_follow_the_text_and_never_cross_a_split():
    f = load("shakespeare", clients=5, examples=None, stride=7, length=60)
    speeches: dict[str, list[str]] = {}
    titles = json.loads((locate("shakespeare") / "plays.json").read_text())
    with gzip.open(locate("shakespeare") / "speeches.jsonl.gz", "rt") as file:
        for line in file:
            speech = json.loads(line)
            speeches.setdefault(f"{titles[speech['play']]}: {speech['role']}", []).append(speech["text"])
    for number, client in enumerate(f.clients):
        text = "\n".join(speeches[client])
        assert f.metadata["characters"][number] == len(text)
        assert f.metadata["speeches"][number] == len(speeches[client])
        assert f.metadata["play"][number] == client.split(":")[0]
        reach = []
        for split in SPLITS:
            whole = [words(f.inputs[i]) + CHARACTERS[int(f.targets[i])] for i in f.splits[split][number]]
            found = [text.find(window) for window in whole]
            assert min(found) >= 0
            once = [place for place, window in zip(found, whole, strict=True) if text.count(window) == 1]
            reach.append((min(once), max(once) + 61))
        assert reach[0][1] <= reach[1][0]
        assert reach[1][1] <= reach[2][0]


@needs("shakespeare")
def test_shakespeare_has_a_label_per_position_for_next_token():
    f = load("shakespeare", clients=3, length=20, task="next_token")
    assert (f.task.kind, f.task.outputs, f.task.target) == ("next_token", 76, (20,))
    assert torch.equal(f.inputs[:, 1:], f.targets[:, :-1])
    alone = load("shakespeare", clients=3, length=20, stride=20)
    for split in SPLITS:
        assert torch.equal(f.splits[split].rows, alone.splits[split].rows)
    assert torch.equal(f.inputs, alone.inputs)
    assert torch.equal(f.targets[:, -1], alone.targets)
    again = load("shakespeare", clients=3, length=20, task=NextToken(ignored=0))
    assert bool((again.targets[f.targets == 0] == -1).all())
    focused = load("shakespeare", clients=3, length=20, task=Classification(focal=2.0))
    assert (focused.task.focal, focused.task.classes) == (2.0, alone.task.classes)
    with pytest.raises(PluresError, match="task='counts' is unknown; use classification, next_token"):
        load("shakespeare", task="counts")


@needs("shakespeare")
def test_shakespeare_counts_and_limits():
    f = load("shakespeare", clients=None, examples=20)
    assert len(f) == 447
    assert f.inputs.dtype == torch.int64
    assert len(f.inputs) == 447 * 20
    assert f.task.classes[0] == "newline"
    assert len(CHARACTERS) == 76
    assert set(load("shakespeare", seed=1, clients=10).clients) != set(load("shakespeare", seed=2, clients=10).clients)
    assert torch.equal(load("shakespeare", clients=3).inputs, load("shakespeare", clients=3).inputs)
    with pytest.raises(PluresError, match="447 roles speak 2000 characters"):
        load("shakespeare", clients=448)


@needs("movielens")
def test_movielens_is_numbered_by_popularity_and_split_by_time():
    f = load("movielens")
    assert f.task.kind == "ratings"
    assert f.judged_by("ndcg_10").metrics[0].title == "NDCG@10"
    assert float(f.targets[f.splits["train"].rows].mean()) == pytest.approx(3.5, abs=0.05)
    assert f.inputs.dtype == torch.int64
    assert int(f.inputs.max()) + 1 == len(movie_titles()) == 9724
    counts = torch.bincount(f.inputs[:, 0])
    assert bool((counts.diff() <= 0).all())
    assert movie_titles()[0] == "Forrest Gump (1994)"
    assert int(counts[0]) == 329
    assert (min(f.metadata["ratings"]), max(f.metadata["ratings"])) == (20, 2698)
    assert sorted(f.targets.unique().tolist()) == [0.5 * half for half in range(1, 11)]
    stamp = torch.from_numpy(raw("movielens", "movielens_small.npz")["timestamp"].astype(np.int64))
    for number in range(len(f)):
        train, test = f.splits["train"][number], f.splits["test"][number]
        assert stamp[train].max() <= stamp[test].min()
    few = load("movielens", movies=500, minimum=30, clients=50)
    assert len(few) == 50
    assert int(few.inputs.max()) < 500
    assert min(few.metadata["ratings"]) >= 30
    whole = load("movielens", standardize=True)
    scaled = whole.targets[whole.splits["train"].rows].double()
    assert whole.task.kind == "regression"
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-5)


@needs("movielens_ranking")
def test_a_users_latest_movies_are_held_out_among_movies_never_rated():
    f, rated = load("movielens_ranking", movies=500, clients=15, latest=30), quiet("movielens", movies=500, minimum=1)
    stamps = torch.from_numpy(raw("movielens", "movielens_small.npz")["timestamp"].astype(np.int64))
    used = raw("movielens", "movielens_small.npz")["item"]
    popular = np.argsort(by_popularity(used))[used] < 500
    own_stamps = stamps[torch.from_numpy(popular)]
    for place, name in enumerate(f.clients):
        rows = torch.cat([split[rated.clients.index(name)] for split in rated.splits.values()])
        known, latest = set(rated.inputs[rows, 0].tolist()), {}
        for split in SPLITS:
            own = f.splits[split][place]
            movie, target = f.inputs[own, 0], f.targets[own, 0]
            assert len(movie.unique()) == len(movie)
            assert {int(m) for m in movie[target == 1]} <= known
            if split == "train":
                assert (target == 0).sum() == 2 * (target == 1).sum() <= 60
                continue
            assert (len(movie), float(target.sum())) == (100, 1.0)
            assert known.isdisjoint(movie[target == 0].tolist())
            latest[split] = own_stamps[rows[rated.inputs[rows, 0] == movie[target == 1]]]
        last = own_stamps[rows].sort().values
        assert (int(latest["validation"]), int(latest["test"])) == (int(last[-2]), int(last[-1]))
    again, other = (load("movielens_ranking", movies=500, clients=15, latest=30, seed=seed) for seed in (0, 1))
    assert torch.equal(f.inputs, again.inputs)
    assert f.clients != other.clients
    with pytest.raises(PluresError, match="latest=0; give at least 1"):
        load("movielens_ranking", latest=0)


@pytest.mark.parametrize(
    ("name", "edges", "labels"),
    [
        pytest.param("cora", 5278, 351, marks=needs("cora")),
        pytest.param("citeseer", 4552, 249, marks=needs("citeseer")),
    ],
)
def test_citation_graphs(name: str, edges: int, labels: int):
    f = load(name)
    dropped = int(f.source.split("; ")[1].split()[0])
    assert dropped + sum(f.metadata["edges"]) == edges
    assert dropped < 0.15 * edges
    assert max(f.metadata["nodes"]) - min(f.metadata["nodes"]) <= 1
    assert int((f.targets == 0).sum()) == labels
    table = raw(name, f"{name}.npz")
    labelled = np.flatnonzero(table["y"] >= 0)
    for i in range(0, len(f.inputs), 100):
        own = table["x_indices"][table["x_indptr"][labelled[i]] : table["x_indptr"][labelled[i] + 1]] + 1
        node = f.inputs[i, 0]
        assert node[node > 0].tolist() == own.tolist()
        assert bool((node[len(own) :] == 0).all())
    linked = np.concatenate([table["edges"], table["edges"][:, ::-1]])
    degree = np.bincount(linked[:, 0], minlength=len(table["y"]))[labelled]
    near = (f.inputs[:, 1:6] >= 0).any(2).sum(1).numpy()
    assert (near <= np.minimum(degree, 5)).all()
    alone = load(name, clients=1)
    assert "0 of" in alone.source
    assert ((alone.inputs[:, 1:6] >= 0).any(2).sum(1).numpy() == np.minimum(degree, 5)).all()


@needs("cora")
def test_neighbours_help_on_cora():
    """Ridge on the mean of the neighbourhood's words against ridge on the node's own words."""
    f = load("cora", clients=5)
    train, test = f.splits["train"].rows, f.splits["test"].rows

    def accuracy(rows: int) -> float:
        tokens = f.inputs[:, :rows].long().clamp(min=0)
        there = (f.inputs[:, :rows] >= 0).any(2).sum(1, keepdim=True)
        x = torch.zeros(len(tokens), 1434).scatter_add_(
            1, tokens.flatten(1), torch.ones_like(tokens.flatten(1)).float()
        )
        x = x[:, 1:] / there
        y = torch.nn.functional.one_hot(f.targets).float()
        weights = torch.linalg.solve(x[train].T @ x[train] + torch.eye(1433), x[train].T @ y[train])
        return float(((x[test] @ weights).argmax(1) == f.targets[test]).float().mean())

    own, two_hops = accuracy(1), accuracy(31)
    assert two_hops > own + 0.05
    assert two_hops > 0.82


@needs("twitch")
def test_twitch_languages_and_parts():
    f = load("twitch", languages=("PTBR", "DE"), examples=None, width=8, neighbours=2)
    assert f.clients == ("DE", "PTBR")
    assert f.metadata["nodes"] == (9498, 1912)
    assert f.metadata["edges"] == (153138, 31299)
    assert f.metadata["language"] == ("German", "Portuguese")
    assert [int(f.targets[rows_of(f, c)].sum()) for c in f.clients] == [5742, 661]
    assert f.features == (7, 8)
    parts = load("twitch", languages=("PTBR",), parts=3, examples=100)
    assert parts.clients == ("PTBR 0", "PTBR 1", "PTBR 2")
    assert parts.metadata["language"] == ("Portuguese",) * 3
    assert len(parts.inputs) == 300
    assert sum(parts.metadata["nodes"]) == 1912
    with pytest.raises(PluresError, match="no language 'IT'"):
        load("twitch", languages=("IT",))


@needs("beijing_air")
def test_air_splits_are_years_and_seasons_are_in_each():
    f = load("beijing_air", standardize=False)
    table = raw("beijing_air", "beijing_air.npz")
    known = ~np.isnan(table["x"][:, 0, ::6])
    assert len(f.inputs) == known.sum()
    np.testing.assert_array_equal(f.targets[:, 0].numpy(), table["x"][:, 0, ::6][known])
    hours = torch.from_numpy(np.broadcast_to(np.arange(0, 35064, 6), known.shape)[known].copy())
    for number in range(len(f)):
        last = [int(hours[f.splits[split][number]].max()) for split in SPLITS]
        first = [int(hours[f.splits[split][number]].min()) for split in SPLITS]
        assert last[0] < first[1]
        assert last[1] < first[2]
        assert abs(first[1] - 35064 / 2) < 24 * 21
        assert abs(first[2] - 35064 * 3 / 4) < 24 * 21
    month, hour = (f.inputs[:, f.columns.index(column)] for column in ("month", "hour"))
    assert sorted(hour.unique().tolist()) == [0, 6, 12, 18]
    assert month[hours == 0].unique().tolist() == [3]
    assert month[hours == 35064 - 6].unique().tolist() == [2]
    absent = np.isnan(table["x"][:, 1:, ::6].transpose(0, 2, 1)[known]).sum()
    wind = (table["wind_dir"][:, ::6][known] == 255).sum()
    assert sum(f.metadata["missing values"]) == absent + 2 * wind
    wind_code = table["wind_dir"][:, ::6][known]
    north = torch.from_numpy(wind_code == table["wind_names"].tolist().index("N"))
    both = [f.columns.index(column) for column in ("wind from east", "wind from north")]
    torch.testing.assert_close(f.inputs[north][:, both], torch.tensor([[0.0, 1.0]]).expand(int(north.sum()), 2))
    stream = seasons(load("beijing_air"))
    assert [len(task) for task in stream] == [12] * 4
    for task in stream:
        assert all(int(task.splits[split].sizes.min()) > 250 for split in SPLITS)


def test_blending_by_hand():
    backgrounds = torch.full((1, 3, 4, 4), 0.25)
    backgrounds[:, 1] = 0.75
    ink = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    mixed = blend(ink, backgrounds)
    torch.testing.assert_close(mixed[0, 0], torch.tensor([[0.25, 0.75], [0.25, 0.0]]))
    torch.testing.assert_close(mixed[0, 1], torch.tensor([[0.75, 0.25], [0.25, 0.5]]))
    ramp = torch.arange(16.0).view(1, 1, 4, 4) / 16
    patches = blend(torch.zeros(400, 1, 2, 2), ramp, seed=1)
    assert sorted(set((16 * patches[:, 0, 0, 0]).int().tolist())) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    with pytest.raises(PluresError, match="smaller than"):
        blend(torch.zeros(1, 1, 5, 5), ramp)


@needs("digits")
def test_digits_are_fedbns_743_and_no_picture_is_twice():
    f = load("digits", standardize=False)
    assert f.splits["train"].sizes.tolist() == [743] * 3
    assert f.metadata["domain"] == ("MNIST", "USPS", "blended MNIST")
    grey = f.inputs[rows_of(f, "MNIST")]
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert 0 <= float(f.inputs.min()) <= float(f.inputs.max()) <= 1
    blended = f.inputs[rows_of(f, "blended MNIST")]
    assert float((blended[:, 0] - blended[:, 1]).abs().mean()) > 0.02
    two = load("digits", domains=("MNIST",), clients_per_domain=2, examples=3000, standardize=False)
    assert two.clients == ("MNIST 0", "MNIST 1")
    pictures = {two.inputs[i, 0].numpy().tobytes() for i in range(6000)}
    assert len(pictures) == 6000
    with pytest.raises(PluresError, match="lower examples"):
        load("digits", examples=9299)
    with pytest.raises(PluresError, match="give some of MNIST, USPS, blended MNIST"):
        load("digits", domains=("SVHN",))


@needs("rotated_mnist")
def test_rotated_mnist():
    f = load("rotated_mnist", clients=8, examples=20, standardize=False)
    flat = load("mnist", partition="iid", clients=8, examples=160, standardize=False)
    assert f.metadata["rotation"] == (0, 90, 180, 270) * 2
    for number, client in enumerate(f.clients):
        rows = rows_of(f, client)
        assert torch.equal(f.inputs[rows], torch.rot90(flat.inputs[rows], number % 4, (2, 3)))


@needs("adult")
def test_adult_counts():
    f = quiet("adult", standardize=False)
    sizes = dict(zip(f.clients, sum(f.splits[s].sizes for s in SPLITS).tolist(), strict=True))
    assert (sizes["Prof-specialty"], sizes["unknown"], sizes["Armed-Forces"]) == (6172, 2809, 15)
    assert int(f.targets.sum()) == 7841 + 3846
    assert not any(column.startswith("occupation") for column in f.columns)
    degree = load("adult", clients="education", minimum=500)
    assert "education-num" not in degree.columns
    assert len(degree) == 14
    assert "Doctorate" in degree.clients
    assert len(load("adult", clients="sex")) == 2
    with pytest.raises(PluresError, match="clients='age' is unknown"):
        load("adult", clients="age")


@needs("tcga_brca")
def test_tcga_keeps_the_test_patients_of_flamby():
    f = quiet("tcga_brca", split=SplitRule(validation=0), standardize=False)
    assert f.task.kind == "survival"
    order = ["Northeast", "South", "West", "Midwest", "Europe", "Canada"]
    places = [f.clients.index(name) for name in order]
    assert [int(f.splits["train"].sizes[place]) for place in places] == [248, 156, 164, 129, 129, 40]
    assert [int(f.splits["test"].sizes[place]) for place in places] == [63, 40, 42, 33, 33, 11]
    assert [int(f.targets[f.splits["test"][place], 1].sum()) for place in places] == [14, 4, 8, 3, 2, 1]
    table = raw("tcga_brca", "tcga_brca.npz")
    np.testing.assert_array_equal(f.inputs.numpy(), table["x"])
    np.testing.assert_array_equal(f.targets.numpy(), np.stack([table["time_days"], table["event"]], 1))
    tested = np.sort(f.splits["test"].rows.numpy())
    np.testing.assert_array_equal(tested, np.flatnonzero(table["is_test"]))
    validated = quiet("tcga_brca", seed=3)
    assert torch.equal(validated.splits["test"].rows, f.splits["test"].rows)
    assert int(validated.splits["validation"].sizes[places[0]]) == round(0.15 * 248)
    with pytest.raises(PluresError, match="years=5 is for endpoint='death'"):
        load("tcga_brca", years=5)


@needs("tcga_brca")
def test_tcga_counts_those_whose_fate_is_known():
    f = quiet("tcga_brca", endpoint="death", standardize=False)
    labels = {row.name: row.labels for row in f.describe().clients}
    assert labels["Northeast"] == (171, 21)
    assert labels["Canada"] == (2, 2)
    five = quiet("tcga_brca", endpoint="death", years=5)
    assert (len(five.inputs), int(five.targets.sum())) == (352, 99)
    table = raw("tcga_brca", "tcga_brca.npz")
    used = (table["time_days"] >= 3 * 365.25) | (table["event"] == 1)
    np.testing.assert_array_equal(f.inputs.numpy(), table["x"][used])


@needs("nsl_kdd")
def test_nsl_kdd_by_protocol():
    f = load("nsl_kdd", clients="protocol_type", standardize=False)
    assert f.clients == ("icmp", "tcp", "udp")
    assert torch.bincount(f.targets).tolist() == [67343, 45927, 11656, 995, 52]
    assert f.features == (38 + 70 + 11,)
    table = raw("nsl_kdd", "nsl_kdd.npz")
    place = table["num_columns"].tolist().index("src_bytes")
    np.testing.assert_allclose(f.inputs[:, place].numpy(), np.log1p(table["xnum_train"][:, place]), rtol=1e-6)


@needs("ai4i2020")
def test_ai4i_counts():
    f = load("ai4i2020", standardize=False)
    assert dict(zip(f.clients, sum(f.splits[s].sizes for s in SPLITS).tolist(), strict=True)) == {
        "high": 1003,
        "low": 6000,
        "medium": 2997,
    }
    assert int(f.targets.sum()) == 339
    assert f.inputs[0].tolist() == pytest.approx([298.1, 308.6, 1551, 42.8, 0])


@needs("cmapss")
def test_cmapss_remaining_life():
    f = load("cmapss", parts=("train_fd001", "test_fd003"), cap=10_000, standardize=False)
    table = raw("cmapss", "cmapss.npz")
    assert f.metadata["population"] == ("FD003",) * 100 + ("FD001",) * 100
    for client, last in (("train_fd001 001", 0), ("test_fd003 001", int(table["test_fd003_rul"][0]))):
        own = f.targets[rows_of(f, client), 0]
        assert sorted(own.tolist()) == list(range(last, last + len(own)))
    assert float(load("cmapss", standardize=False).targets.max()) == 125
    assert len(load("cmapss", parts=("test_fd001",)).inputs) == 13096
    blocks = {}
    cycle = torch.from_numpy(np.concatenate([table["train_fd001_cycle"], table["test_fd003_cycle"]]).astype(np.int64))
    for split in SPLITS:
        for number, rows in enumerate(f.splits[split]):
            for block in ((cycle[rows] - 1) // 10).unique().tolist():
                assert blocks.setdefault((number, block), split) == split


def test_what_is_seen_of_an_engine_by_hand():
    """Two engines with 3 and 2 cycles, means over 2: 1, 1.5, 2.5 and 10, 15; first cycles: 1, 1.5, 1.5 and 10, 15."""
    values, cycle = np.array([[1.0], [2.0], [3.0], [10.0], [20.0]]), np.array([1, 2, 3, 1, 2])
    expected = [[1.0, 0.0, 1.0], [1.5, 0.0, 2.0], [2.5, 1.0, 3.0], [10.0, 0.0, 1.0], [15.0, 0.0, 2.0]]
    np.testing.assert_allclose(seen(values, cycle, 2, own=True), expected)
    np.testing.assert_allclose(seen(values, cycle, 2, own=False), np.array(expected)[:, :1])


@needs("cmapss_fleets")
def test_fleets_test_whole_engines_at_their_last_cycle():
    f = load("cmapss_fleets", standardize=False, window=1)
    table = raw("cmapss_fleets", "cmapss.npz")
    test = f.splits["test"]
    for fleet in range(10):
        number = f.index(f"FD001 fleet {fleet + 1:02}")
        life = np.minimum(table["test_fd001_rul"][10 * fleet : 10 * fleet + 10], 125)
        assert f.targets[test[number], 0].tolist() == life.tolist()
        number = f.index(f"FD003 fleet {fleet + 1:02}")
        life = np.minimum(table["test_fd003_rul"][10 * fleet + 6 : 10 * fleet + 10], 125)
        assert f.targets[test[number], 0].tolist() == life.tolist()
    cycles = f.inputs[:, f.columns.index("cycles")]
    first = f.index("FD001 fleet 01")
    last = [int(table["test_fd001_cycle"][table["test_fd001_unit"] == unit].max()) for unit in range(1, 11)]
    assert cycles[test[first]].tolist() == last
    assert f.metadata["population"] == ("FD001",) * 10 + ("FD003",) * 10
    ages = {split: cycles[f.splits[split][first]] for split in SPLITS}
    assert [int((ages[split] == 1).sum()) for split in ("train", "validation")] == [8, 2]
    lives = [int(table["train_fd001_cycle"][table["train_fd001_unit"] == unit].max()) for unit in range(1, 11)]
    assert sum(len(ages[split]) for split in ("train", "validation")) == sum(lives)
    with pytest.raises(PluresError, match="fleets=3; give a divisor of 100"):
        load("cmapss_fleets", fleets=3)


@needs("nsl_kdd")
def test_nsl_kdd_official_test_part_by_service():
    f = load("nsl_kdd", attacks="one", both=30, most=2000, official=True, standardize=False)
    table = raw("nsl_kdd", "nsl_kdd.npz")
    bytes_sent, service = (
        table["num_columns"].tolist().index("src_bytes"),
        table["cat_columns"].tolist().index("service"),
    )
    for number, name in enumerate(table["names_service"].tolist()):
        train, test = (table[f"xcat_{part}"][:, service] == number for part in ("train", "test"))
        normal = int((table["y_train"][train] == 0).sum())
        assert (name in f.clients) == (min(normal, int(train.sum()) - normal) >= 30)
        if name in f.clients:
            rest = torch.cat([f.splits[split][f.index(name)] for split in ("train", "validation")])
            assert len(rest) == min(int(train.sum()), 2000)
            if len(rest) < 2000:
                assert torch.bincount(f.targets[rest]).tolist() == [normal, int(train.sum()) - normal]
            own = f.splits["test"][f.index(name)]
            np.testing.assert_array_equal(f.targets[own].numpy(), table["y_test"][test] > 0)
            sent = np.log1p(table["xnum_test"][test, bytes_sent])
            np.testing.assert_allclose(f.inputs[own, bytes_sent].numpy(), sent, rtol=1e-6)
    assert len(f) == 14


@needs("beijing_forecast")
def test_forecasts_are_changes_and_stay_in_their_year():
    f = load("beijing_forecast", standardize=False)
    dust = raw("beijing_forecast", "beijing_air.npz")["x"][:, 0]
    hours = np.arange(24, dust.shape[1] - 24, 6)
    begins = np.array([365 + 365, 365 + 365 + 366]) * 24
    part = np.searchsorted(begins, hours, side="right")
    within = part == np.searchsorted(begins, hours + 24, side="right")
    for number in range(len(f)):
        changes = np.stack([dust[number, hours + step] - dust[number, hours] for step in (6, 12, 24)], 1)
        known = within & ~np.isnan(changes).any(1)
        for place, split in enumerate(SPLITS):
            expected = changes[known & (part == place)]
            np.testing.assert_array_equal(f.targets[f.splits[split][number]].numpy(), expected)
        now = f.inputs[f.splits["test"][number], 0].numpy()
        np.testing.assert_array_equal(now, dust[number, hours][known & (part == 2)])
    assert sum(place == "city" for place in f.metadata["place"]) == 8


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(name)) for name in ("cora", "movielens", "tcga_brca", "ai4i2020")]
)
def test_the_seed_decides_the_splits(name: str):
    rule = SplitRule(by="random")
    drawn = {"official": False} if name == "tcga_brca" else {}
    first, again, other = (quiet(name, seed=seed, split=rule, **drawn) for seed in (0, 0, 1))
    assert torch.equal(first.splits["test"].rows, again.splits["test"].rows)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.splits["test"].rows, other.splits["test"].rows)
    for split in SPLITS:
        assert set(first.splits[split].rows.tolist()).isdisjoint(
            row for other_split in SPLITS if other_split != split for row in first.splits[other_split].rows.tolist()
        )
