"""The HTML report: self-contained, safe with any name, and true to the numbers."""

from __future__ import annotations

import itertools
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from comparisons import TITLES, comparison, scored

from plures.evaluate.results import Comparison
from plures.report import headline, hours, html_report
from plures.report.document import curve, document, groups
from plures.report.overview import ranks
from plures.report.sheets import brief
from plures.report.vendor import manifest, scripts

VOID = {"meta", "link", "input", "br", "path", "img"}
HOSTILE = "</script><b>\"&${x}' <img src=x onerror=alert(1)> \u2028 [bold]"


class Page(HTMLParser):
    """Tags, attributes and texts of a page; unbalanced tags are an error."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.stack[-1] if self.stack else "", data))

    def inside(self, tag: str) -> str:
        return "".join(text for where, text in self.texts if where == tag)

    def shown(self) -> str:
        return " ".join(text for where, text in self.texts if where not in ("script", "style"))

    def data(self, place: int = 0) -> dict[str, object]:
        text = next(text for where, text in self.texts if where == "script")
        found: dict[str, object] = json.loads(text)["comparisons"][place]
        return found


def own(page: str) -> str:
    """A page without its embedded libraries."""
    for script in scripts():
        assert script in page
        page = page.replace(script, "")
    return page


SHAPES = {
    "classification": comparison(),
    "regression": comparison(kind="regression", clients=12),
    "one seed": comparison(seeds=1, rounds=10),
    "unseen": comparison(unseen=4, clients=10),
    "hostile": comparison(
        federation=HOSTILE, client_names=[f"{HOSTILE} {i}" for i in range(6)], clients=6, seeds=2, rounds=10
    ),
    "detailed": comparison(details=True, unseen=3, clients=12, seeds=2, rounds=10),
    "baselines": comparison(names=("local", "fedavg", "fedavg_ft"), clients=5, rounds=4),
    "nobody scored": scored({name: [[None] * 4] for name in ("local", "fedavg", "fedavg_ft", "ditto")}),
}


@pytest.fixture(params=[name for name in SHAPES if name != "nobody scored"])
def shape(request: pytest.FixtureRequest) -> Comparison:
    return SHAPES[request.param]


def test_asks_nothing_of_the_network(shape: Comparison) -> None:
    page = html_report(shape)
    for tag, attributes in Page(page).tags:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or re.match(r"#|data:", value), (tag, name, value)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon", own(page))
    assert "default-src 'none'" in page


def test_embedded_data_parse_back_to_the_same_values(shape: Comparison) -> None:
    found = Page(html_report(shape)).data()
    assert found == json.loads(json.dumps(document(shape, shape.rows())))
    drawn = {m["name"]: m["values"] for m in found["methods"]}  # type: ignore[attr-defined]
    for method in shape.methods:
        expected = method.per_client(shape.metric.name)
        assert [None if x != x else float(x) for x in expected] == drawn[method.name]


def test_hostile_names_stay_text() -> None:
    page = Page(html_report(SHAPES["hostile"]))
    assert page.inside("h1") == HOSTILE
    assert [tag for tag, _ in page.tags].count("script") == 2 + len(scripts())
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert f"{HOSTILE} 5" in page.shown()


def test_missing_values_are_a_dash(shape: Comparison) -> None:
    page = Page(html_report(shape))
    cells = [text for where, text in page.texts if where in ("td", "dd", "p")]
    assert "\N{EN DASH}" in cells
    assert not any(re.search(r"\b(nan|NaN|None|inf|Infinity|null)\b", text) for text in cells)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_no_test_examples_at_all_is_said_and_drawn() -> None:
    page = Page(html_report(SHAPES["nobody scored"]))
    assert "no conclusion is possible" in page.shown()


def test_first_screen_and_sections(shape: Comparison) -> None:
    page = Page(html_report(shape))
    assert headline(shape) in page.shown()
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    expected = ["methods", "gain", "curves", "tradeoff", "spread", "fairness", "clients", "tuning", "costs", "sheet"]
    assert {*expected, "how", "words", "data", "client"} <= set(ids)
    assert sorted(expected, key=ids.index) == expected
    for tag, attributes in page.tags:
        for name in ("href", "aria-labelledby"):
            if tag == "dialog":
                continue
            if (attributes.get(name) or "").startswith("#") or (name == "aria-labelledby" and name in attributes):
                assert (attributes[name] or "").lstrip("#") in ids, (tag, attributes)
    assert page.inside("noscript") or any(tag == "noscript" for tag, _ in page.tags)
    assert all(method.citation in page.shown() for method in shape.methods)
    assert shape.federation.source in page.shown()


def test_counts_of_harmed_clients_agree_with_the_table() -> None:
    c = SHAPES["classification"]
    drawn = {m["name"]: m["values"] for m in document(c, c.rows())["methods"]}
    pairs = [(a, b) for a, b in zip(drawn["fedbn"], drawn["local"], strict=True) if a is not None and b is not None]
    assert sum(a < b for a, b in pairs) / len(pairs) == c.row("fedbn").harmed_local


def test_curve_is_the_mean_and_range_over_seeds() -> None:
    c = scored({name: [[0.5] * 4] * 3 for name in ("local", "fedavg", "fedavg_ft")})
    points = curve(c.method("local"))
    assert [p["round"] for p in points] == [0, 2, 4]
    # Validation is 0.1 (round + seed) over seeds 0, 1, 2; 1.2 MB travel among 4 clients in each of 4 rounds.
    last = {"round": 4, "mean": 0.5, "least": 0.4, "most": 0.6, "bytes": 1.2e6, "seconds": 3.0}
    assert points[-1] == pytest.approx(last)


def test_unseen_clients_have_rows_of_their_own() -> None:
    shown = Page(html_report(SHAPES["unseen"])).shown()
    assert "4 unseen clients" in shown
    assert "new person 4" in shown


def test_page_is_small() -> None:
    page = html_report(SHAPES["classification"])
    assert len(own(page).encode()) < 400_000
    assert len(page.encode()) < 1_000_000


def test_libraries_are_what_their_authors_published() -> None:
    folder = files("plures.report.vendor")
    for name, about in manifest().items():
        assert sha256(folder.joinpath(name).read_bytes()).hexdigest() == about["sha256"]
        assert about["version"] in folder.joinpath(name).read_text(encoding="utf-8").splitlines()[0]
        assert "Permission to use, copy, modify" in folder.joinpath(about["licence"]).read_text(encoding="utf-8")
    assert set(manifest()) == {f.name for f in folder.iterdir() if f.name.endswith(".js")}
    for script in scripts():
        assert "</script" not in script
        assert "<!--" not in script


def test_sections_without_data_do_not_appear() -> None:
    extra = {"calibration", "clusters", "map", "cold"}

    def ids(c: Comparison) -> set[str]:
        return {attributes.get("id") or "" for tag, attributes in Page(html_report(c)).tags if tag == "section"}

    assert not ids(SHAPES["classification"]) & extra
    assert ids(SHAPES["detailed"]) >= extra
    assert ids(comparison(kind="regression", details=True, clients=6, seeds=1)) & extra == {"clusters", "map"}


def test_results_of_older_versions_load_and_show(tmp_path: Path) -> None:
    c = SHAPES["classification"]
    old = json.loads(c.to_json())
    for method in old["methods"]:
        for seed in method["seeds"]:
            del seed["details"]
            for point in seed["curve"]:
                del point["clients"]
    (tmp_path / "results.json").write_text(json.dumps(old), encoding="utf-8")
    again = Comparison.from_json(tmp_path / "results.json")
    assert again == c
    assert html_report(again) == html_report(c)


def test_groups_are_words_or_thirds() -> None:
    c = SHAPES["classification"]
    found = groups(c)
    assert list(found) == ["ward", "device", "training examples"]
    assert [(label, places[:2]) for label, places in found["ward"]] == [("A", [0, 3]), ("B", [1, 4]), ("C", [2, 5])]
    sizes = c.federation.sizes["train"]
    thirds = found["training examples"]
    assert sorted(i for _, places in thirds for i in places) == list(range(30))
    for (_, lower), (_, upper) in itertools.pairwise(thirds):
        assert max(sizes[i] for i in lower) < min(sizes[i] for i in upper)
    assert all(8 <= len(places) <= 12 for _, places in thirds)


def test_a_study_has_ranks_and_every_comparison() -> None:
    easy, hard = (
        comparison(federation="easy", clients=6),
        comparison(federation="hard <b>", kind="regression", clients=5),
    )
    page = html_report([easy, hard], "Two data sets")
    found = Page(page)
    assert found.inside("h1") == "Two data sets"
    assert found.data(0)["federation"] == "easy"
    assert found.data(1)["federation"] == "hard <b>"
    assert page.count("<template data-comparison=") == 1
    best = [min(ranks(c, c.rows()), key=ranks(c, c.rows()).__getitem__) for c in (easy, hard)]
    assert best == [report_best(c) for c in (easy, hard)]
    mean = {n: (ranks(easy, easy.rows())[n] + ranks(hard, hard.rows())[n]) / 2 for n in TITLES}
    first = min(mean, key=mean.__getitem__)
    assert f"{TITLES[first]} has the best mean rank ({mean[first]:.2f} of 9 methods)" in found.shown()


def test_repeated_comparisons_of_the_same_clients_have_a_mean_and_its_spread() -> None:
    one, two = (
        scored({"local": [[0.5] * 4], "fedavg": [[value] * 4], "fedavg_ft": [[0.7] * 4]}) for value in (0.6, 0.8)
    )
    page = html_report([one, two], "Two splits")
    assert Page(page).inside("h1") == "Two splits"
    assert "70.0 ± 14.1" in page  # 60 and 80: 20 / sqrt(2)
    assert "50.0 ± 0.0" in page
    assert "over the lines above" not in html_report([one, comparison(clients=5)])


def test_mean_ranks_are_among_methods_that_take_part_everywhere() -> None:
    base = {"local": [[0.5] * 4], "fedavg": [[0.6] * 4], "fedavg_ft": [[0.7] * 4]}
    lucky = scored({**base, "ditto": [[0.9] * 4]})
    text = Page(html_report([lucky, scored(base)])).shown()
    assert "FedAvg + fine-tuning has the best mean rank (1.00 of 3 methods)" in text
    assert "None is best more often than all others (1 of 2 at most)" in text


def test_equal_means_share_a_rank() -> None:
    c = scored({"local": [[0.5] * 4], "fedavg": [[0.6] * 4], "fedavg_ft": [[0.6] * 4], "ditto": [[0.7] * 4]})
    assert ranks(c, c.rows()) == {"local": 4.0, "fedavg": 2.5, "fedavg_ft": 2.5, "ditto": 1.0}


def report_best(c: Comparison) -> str:
    sign = 1 if c.metric.higher else -1
    return max(c.rows(), key=lambda row: sign * row.mean).name


def test_text_has_enough_contrast_in_light_and_dark() -> None:
    css = files("plures.report").joinpath("page", "page.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([a-z0-9]+): light-dark\(#([0-9a-f]{6}), #([0-9a-f]{6})\)", css)
    colours = {name: (light, dark) for name, light, dark in pairs}

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    on_paper = ["ink", "soft", "accent", "gain", "harm", *(f"s{i}" for i in range(8))]
    written = [(name, "paper") for name in on_paper]
    written += [("ink", ground) for ground in ("card", "wash", "heat")] + [("soft", "card"), ("soft", "wash")]
    written += [("accent", "wash")]
    for text, ground in written:
        for mode in (0, 1):
            assert contrast(colours[text][mode], colours[ground][mode]) >= 4.5, (text, ground, mode)


def test_a_constant_far_below_all_others_does_not_squeeze_the_scale_of_means() -> None:
    """Means of .8 to .85 have a scale of .05; with the constant at .5 it would be .35. At .78, it belongs to it."""
    means = {"local": 0.8, "fedavg": 0.82, "fedavg_ft": 0.84, "ditto": 0.85}
    titles = {name: name for name in ("constant", *means)}
    far, near = ["0.0", "0.0", "40.0", "80.0", "100.0"], ["0.0", "28.6", "57.1", "85.7", "100.0"]
    for constant, marks in ((0.5, far), (0.78, near)):
        values = {name: [[value] * 4] for name, value in {"constant": constant, **means}.items()}
        page = html_report(scored(values, titles=titles))
        spans = re.findall(r'class="interval( off)?" aria-hidden="true" style="--l:[^;]*;--w:[^;]*;--m:([^%]*)%', page)
        assert [middle for _, middle in spans] == marks
        assert [bool(off) for off, _ in spans] == [constant < 0.6, False, False, False, False]


def test_settings_are_shown_without_the_digits_of_their_rounding() -> None:
    assert list(map(brief, (0.1, 0.1 / 125**2, 15625.0, 1 / 3, "sgd"))) == [
        "0.1",
        "6.4e-06",
        "15625.0",
        "0.333333",
        "sgd",
    ]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0 s"), (1.33e-7, "under 1 ms"), (0.0792, "79.2 ms"), (5.0, "5.00 s"), (600.0, "10.0 minutes"),
        (9000.0, "2.50 hours"),
    ],
)  # fmt: skip
def test_simulated_time_has_a_fitting_unit(seconds: float, told: str) -> None:
    assert hours.lasting(seconds) == told


@pytest.mark.parametrize(
    ("joules", "told"), [(0.0, "0 J"), (1.36e-6, "under 1 mJ"), (0.615, "615 mJ"), (1330.0, "1.33 kJ")]
)
def test_energy_has_a_fitting_unit(joules: float, told: str) -> None:
    assert hours.energy(joules) == told
