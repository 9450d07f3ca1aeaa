"""The page in a real browser: numbers, files, keyboard, colours, print. Skipped without Chromium."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from comparisons import RMSE, comparison, scored

from browsing import chromium, load, resize
from plures.evaluate.results import Comparison
from plures.evaluate.summary import summarize
from plures.report import html_report
from plures.report.story import Block, Course, Story
from plures.texts import cell, uncelled

HOSTILE = "</script><b>\"&${x}' <img src=x onerror=alert(1)> a_very_long_name_without_any_space_in_it_at_all"
DETAILED = comparison(details=True, unseen=3, clients=30, seeds=3, rounds=20)
SMALL = comparison(details=True, clients=6, seeds=2, rounds=10, federation=HOSTILE)
PLAIN = comparison(kind="regression", clients=12, seeds=2, rounds=10)
KEYS = ("mean", "weighted", "std", "worst", "bottom", "harmed_local", "harmed_fedavg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    with chromium(folder) as started:
        yield started


@pytest.fixture
def visit(browser: Any, folder: Path) -> Callable[..., Any]:
    def visit(
        *shown: Comparison, width: int = 1200, theme: str = "light", hash: str = "", story: Story | None = None
    ) -> Any:
        file = folder / "page.html"
        file.write_text(html_report(shown if len(shown) > 1 else shown[0], story=story), encoding="utf-8")
        resize(browser, width, theme)
        load(browser, file.as_uri() + hash)
        return browser

    return visit


def choose(browser: Any, name: str, words: str) -> None:
    """Select the option whose text begins with some words."""
    script = """
        const select = document.querySelector(`select[name="${arguments[0]}"]`);
        const option = [...select.options].find((o) => o.text.startsWith(arguments[1]));
        select.value = option.value;
        select.dispatchEvent(new Event("change", { bubbles: true }));
    """
    browser.execute_script(script, name, words)


def cells(browser: Any, section: str = "methods") -> dict[str, dict[str, tuple[str, float | None]]]:
    """Method -> column -> the text shown and the value behind it."""
    script = """
        return [...document.querySelectorAll(`#${arguments[0]} tr[data-method]`)].map((line) => [line.dataset.method,
            [...line.querySelectorAll("td[data-key]")].map((td) =>
                [td.dataset.key, td.querySelector(".v").textContent, td.dataset.value ?? null])]);
    """
    found = browser.execute_script(script, section)
    return {m: {key: (text, None if v is None else float(v)) for key, text, v in line} for m, line in found}


def saved(browser: Any, name: str, button: str) -> str:
    """Text of the file that a button saves, taken before the browser has it.

    A browser saves only ten files of a tab without asking, and the promise of a `Blob`'s text is not always kept.
    """
    script = """
        const [make, click, blob] = [URL.createObjectURL, HTMLAnchorElement.prototype.click, Blob];
        const files = [];
        window.Blob = class { constructor(parts) { this.text = parts.join(""); } };
        URL.createObjectURL = (content) => `data:,${files.push([content.text])}`;
        HTMLAnchorElement.prototype.click = function () { files.at(-1).unshift(this.download); };
        try {
            document.querySelector(arguments[0]).click();
        } finally {
            window.Blob = blob;
            URL.createObjectURL = make;
            HTMLAnchorElement.prototype.click = click;
        }
        return files;
    """
    ((file, text),) = browser.execute_script(script, button)
    assert file == name
    return str(text)


def press(browser: Any, *keys: str) -> None:
    for key in keys:
        for kind in ("keyDown", "keyUp"):
            extra = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
            code = {"Escape": 27, "Tab": 9}.get(key)
            extra |= {"windowsVirtualKeyCode": code} if code else {}
            browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key, **extra})


@pytest.mark.parametrize("shown", [(DETAILED,), (SMALL,), (PLAIN,), (DETAILED, PLAIN)])
def test_no_error_and_no_request(visit: Callable[..., Any], shown: tuple[Comparison, ...]) -> None:
    browser = visit(*shown)
    browser.execute_script("""
        document.querySelectorAll("main input[type=radio]").forEach((input) => input.click());
        document.querySelectorAll(".legend button").forEach((button) => button.click());
        document.querySelectorAll("#comparison select").forEach((select) => {
            for (const option of [...select.options].reverse()) {
                select.value = option.value;
                select.dispatchEvent(new Event("change", { bubbles: true }));
            }
        });
        document.querySelector("#clients button.link").click();
        document.querySelector("#client .close").click();
    """)
    assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert urls
    assert all(re.match(r"(file|data|blob|about):", url) for url in urls), urls


@pytest.mark.parametrize(
    ("c", "by", "value"), [(DETAILED, "ward", "B"), (DETAILED, "device", "hip"), (PLAIN, "ward", "A")]
)
def test_a_choice_of_clients_gives_the_numbers_of_python(
    visit: Callable[..., Any], c: Comparison, by: str, value: str
) -> None:
    browser = visit(c)
    whole = cells(browser)
    choose(browser, by, value)
    people = [n for n, v in zip(c.federation.clients, c.federation.metadata[by], strict=True) if v == value]
    part = c.among(people)
    found, fair = cells(browser), cells(browser, "fairness")
    assert found != whole
    for row in part.rows():
        for key in KEYS:
            expected = getattr(row, key)
            if expected is None or (key == f"harmed_{row.name}"):
                continue
            assert found[row.name][key][1] == pytest.approx(expected, rel=1e-9, abs=1e-12), (row.name, key)
        for name, expected in row.others.items():
            assert found[row.name][f"metric:{name}"][1] == pytest.approx(expected, rel=1e-9, abs=1e-12), name
        if row.mean_ci is not None:
            assert f"± {row.mean_ci * 100:.1f}" in found[row.name]["mean"][0] or not c.metric.percent
        if row.name != "fedavg_ft":
            # Up to 13 clients all sign patterns are tried; beyond, patterns are drawn, here and there differently.
            exact = len(people) <= 13
            assert found[row.name]["p"][1] == pytest.approx(row.p_value, abs=1e-12 if exact else 0.02)
        method = part.method(row.name)
        over = summarize(method.per_client(c.metric.name), method.seeds[0].test.sizes, higher=c.metric.higher)
        assert fair[row.name]["jain"][1] == pytest.approx(over.jain)
        assert fair[row.name]["p10"][1] == pytest.approx(over.p10)
    best = max(part.rows(), key=lambda row: row.mean if c.metric.higher else -row.mean)
    output = browser.execute_script("return document.querySelector('.choice output').textContent")
    assert output.startswith(
        f"{len(people)} of {len(c.federation.clients)} clients. Best mean among them: {best.title}"
    )
    lines = browser.execute_script(
        "return [...document.querySelectorAll('#clients tbody tr:not([hidden])')].map((r) => r.dataset.place)"
    )
    assert len([line for line in lines if line is not None]) == len(people)
    browser.execute_script("document.querySelector('.choice button').click()")
    assert cells(browser) == whole


def test_charts_follow_the_choice(visit: Callable[..., Any]) -> None:
    browser = visit(DETAILED)
    choose(browser, "ward", "C")
    people = [
        n for n, v in zip(DETAILED.federation.clients, DETAILED.federation.metadata["ward"], strict=True) if v == "C"
    ]
    part = DETAILED.among(people)
    lines = list(csv.DictReader(io.StringIO(saved(browser, "gain.csv", "#gain [data-save=csv]"))))
    assert {line["client"] for line in lines} == set(people)
    own, local = (part.method(n).per_client("accuracy") for n in ("ditto", "local"))
    gains = [line["gain"] for line in lines if line["method"] == "Ditto"]
    assert [float(g) for g in gains if g] == pytest.approx((own - local)[~np.isnan(own)].tolist())
    curve = list(csv.DictReader(io.StringIO(saved(browser, "curves.csv", "#curves [data-save=csv]"))))
    last = [line for line in curve if line["method"] == "Ditto"][-1]
    place = [DETAILED.federation.clients.index(n) for n in people]
    points = [seed.curve[-1].clients for seed in DETAILED.method("ditto").seeds]
    means = [np.mean([p[i] for i in place if p[i] is not None]) for p in points]
    assert float(last["mean"]) == pytest.approx(np.mean(means), abs=1e-4)
    assert float(last["lowest_seed"]) == pytest.approx(min(means), abs=1e-4)
    dots = browser.execute_script("return document.querySelectorAll('#map .plot [aria-label=dot] circle').length")
    assert dots == len(people)


def test_a_button_saves_a_file(visit: Callable[..., Any], folder: Path) -> None:
    browser, file = visit(DETAILED), folder / "spread.csv"
    text = saved(browser, file.name, "#spread [data-save=csv]")
    browser.execute_script("document.querySelector('#spread [data-save=csv]').click()")
    for _ in range(400):
        if file.exists() and file.stat().st_size:
            break
        time.sleep(0.05)
    assert file.read_text(encoding="utf-8") == text


def test_files_hold_the_data(visit: Callable[..., Any]) -> None:
    browser = visit(DETAILED)
    table = list(csv.reader(io.StringIO(saved(browser, "spread.csv", "#spread [data-save=csv]"))))
    titles = [row.title for row in DETAILED.rows()]
    assert table[0] == ["client", *titles]
    for k, row in enumerate(DETAILED.rows()):
        found = [float(line[1 + k]) if line[1 + k] else math.nan for line in table[1:]]
        np.testing.assert_allclose(found, DETAILED.method(row.name).per_client("accuracy"))
    ids = browser.execute_script("return [...document.querySelectorAll('section.chart')].map((s) => s.id)")
    assert ids == ["gain", "curves", "tradeoff", "spread", "fairness", "calibration", "clusters", "map", "cold"]
    for name in ids:
        assert len(saved(browser, f"{name}.csv", f"#{name} [data-save=csv]").splitlines()) > 2
        drawing = ElementTree.fromstring(saved(browser, f"{name}.svg", f"#{name} [data-save=svg]"))
        assert drawing.tag.endswith("svg")
        text = ElementTree.tostring(drawing, encoding="unicode")
        assert "var(" not in text
        assert DETAILED.federation.name in text
    methods = list(csv.reader(io.StringIO(saved(browser, "methods.csv", "[data-save-table=methods]"))))
    assert [line[0] for line in methods[1:]] == titles
    assert [float(line[1]) for line in methods[1:]] == pytest.approx([row.mean for row in DETAILED.rows()])


def test_keyboard_walks_and_opens_a_client(visit: Callable[..., Any]) -> None:
    browser = visit(DETAILED)
    browser.execute_script("document.querySelector('#gain .plot').focus()")
    outline = browser.execute_script("return getComputedStyle(document.querySelector('#gain .plot')).outlineStyle")
    tip = "return document.querySelector('#gain .tip').textContent"
    press(browser, "ArrowRight")
    first = browser.execute_script(tip)
    own, local = (DETAILED.method(n).per_client("accuracy") for n in ("fedavg", "local"))
    worst = DETAILED.federation.clients[int(np.nanargmin(own - local))]
    assert first.startswith(f"{worst}: ")
    assert "ward" in first
    assert "training examples" in first
    press(browser, "ArrowDown")
    assert browser.execute_script(tip).startswith(f"{worst}: ")
    assert "FedAvg + fine-tuning" in browser.execute_script(tip)
    press(browser, "Enter")
    assert browser.execute_script("return document.getElementById('client').open")
    assert browser.execute_script("return document.activeElement.textContent") == worst
    text = browser.execute_script("return document.getElementById('client').textContent")
    for words in ("Its data", "With each method", "Its learning curve", "What is personal", "Its errors", "Its peers"):
        assert words in text
    press(browser, "Escape")
    assert not browser.execute_script("return document.getElementById('client').open")
    assert browser.execute_script("return document.activeElement.getAttribute('aria-label')").startswith("Gain or harm")
    assert outline != "none" or browser.execute_script("return document.querySelector('#gain .plot').matches(':focus')")


def test_everything_that_acts_can_be_reached_by_keyboard(visit: Callable[..., Any]) -> None:
    browser = visit(DETAILED)
    script = """
        return [...document.querySelectorAll("button, select, input, a[href], summary, .plot, .scroll")]
            .filter((node) => node.offsetParent && node.tabIndex < 0).map((node) => node.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(script) == []
    unnamed = """
        const words = (n) => n?.textContent.trim();
        const named = (n) => n.getAttribute("aria-label") || words(n) || words(n.closest("label"));
        return [...document.querySelectorAll("button, select, input, [role=group], [role=region], [role=img]")]
            .filter((node) => !named(node)).map((node) => node.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(unnamed) == []


def test_a_link_opens_a_client_with_its_numbers(visit: Callable[..., Any]) -> None:
    name = DETAILED.federation.clients[4]
    browser = visit(DETAILED, hash="#client=" + name.replace(" ", "%20"))
    assert browser.execute_script("return document.querySelector('#client h2').textContent") == name
    lines = browser.execute_script(
        "return [...document.querySelectorAll('#client > section:nth-of-type(2) tbody tr')].map((r) => "
        "[...r.cells].map((c) => c.textContent))"
    )
    for row, line in zip(DETAILED.rows(), lines, strict=True):
        value = DETAILED.method(row.name).per_client("accuracy")[4]
        assert line[:2] == [row.title, f"{100 * value:.1f} %"]


def test_light_and_dark(visit: Callable[..., Any]) -> None:
    shades = {}
    for theme in ("light", "dark"):
        browser = visit(DETAILED, theme=theme)
        shades[theme] = browser.execute_script("""
            const shade = (node, name) => getComputedStyle(node)[name].match(/[\\d.]+/g).slice(0, 3).map(Number)
                .reduce((a, b) => a + b) / 3;
            const label = [...document.querySelectorAll("#gain svg text")].find((t) => t.textContent === "FedAvg");
            return [shade(document.body, "backgroundColor"), shade(document.body, "color"), shade(label, "fill")];
        """)
    (paper, ink, chart), (night, white, drawn) = shades["light"], shades["dark"]
    assert paper > 240 > 60 > ink
    assert night < 40 < 200 < white
    assert (chart, drawn) == (ink, white)


@pytest.mark.parametrize("shown", [(DETAILED,), (SMALL,), (PLAIN, SMALL)])
@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_scrolls_sideways_but_tables(
    visit: Callable[..., Any], shown: tuple[Comparison, ...], width: int
) -> None:
    browser = visit(*shown, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = """
        const out = [];
        for (const text of document.querySelectorAll(".plot svg text")) {
            const box = text.getBoundingClientRect();
            const plot = text.closest(".plot").getBoundingClientRect();
            if (box.width && (box.left < plot.left - 2 || box.right > plot.right + 2)) {
                out.push([text.closest("section").id, text.textContent]);
            }
        }
        return out;
    """
    assert browser.execute_script(outside) == []
    browser.execute_script("document.querySelector('#clients button.link').click()")
    assert browser.execute_script("const d = document.getElementById('client'); return d.scrollWidth <= d.clientWidth")


def test_on_paper_everything_is_open_and_controls_are_gone(visit: Callable[..., Any]) -> None:
    browser = visit(DETAILED)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = "return [...document.querySelectorAll('nav, .save, .skip, .filter')].every((n) => !n.offsetParent)"
    assert browser.execute_script(hidden)
    overflow = "return [...document.querySelectorAll('.scroll')].map((n) => getComputedStyle(n).overflowY)"
    assert set(browser.execute_script(overflow)) == {"visible"}
    browser.execute_script("window.opened = 0; addEventListener('beforeprint', () => { window.opened = "
                           "document.querySelectorAll('details:not([open])').length; })")  # fmt: skip
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(pdf) > 50_000
    assert browser.execute_script("return window.opened") == 0
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0


def test_a_study_opens_each_of_its_comparisons(visit: Callable[..., Any]) -> None:
    browser = visit(DETAILED, PLAIN, SMALL)
    name = "return document.querySelector('#comparison .name').textContent"
    assert browser.execute_script(name) == DETAILED.federation.name
    browser.execute_script("document.querySelectorAll('.overview [data-open=\"2\"]')[1].click()")
    assert browser.execute_script(name) == HOSTILE
    assert browser.execute_script("return document.activeElement.textContent") == HOSTILE
    assert browser.execute_script("return document.querySelectorAll('#gain svg circle').length") > 20
    browser.execute_script("document.querySelector('.overview [data-open=\"0\"]').click()")
    choose(browser, "ward", "B")
    people = DETAILED.federation.clients[1::3]
    assert cells(browser)["ditto"]["mean"][1] == pytest.approx(DETAILED.among(people).row("ditto").mean)
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_nobody_scored_is_drawn_without_an_error(visit: Callable[..., Any]) -> None:
    nobody = scored({name: [[None] * 4] for name in ("local", "fedavg", "fedavg_ft", "ditto")})
    browser = visit(nobody)
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    assert browser.execute_script("return document.querySelectorAll('#gain svg').length") == 1


ATTACKS = (
    "<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "' onmouseover='alert(1)", "<!--<script>", "[bold]",
    "</script><script>alert(1)</script>", "</title></style></template></textarea></svg><svg onload=alert(1)>",
    "javascript:alert(1)", "${alert(1)}", "`${alert(1)}`", "&lt;img src=x onerror=alert(1)&gt;", "-1+1|cmd", "a;=1+1",
    '=HYPERLINK("//x.example")', "@SUM(1)", "__proto__", "constructor", "نص \u0627", "👩‍⚕️", "x" * 100,
    "\\u003cimg src=x onerror=alert(1)\\u003e", "\x1b]0;x\x07", "a\u202eb",
)  # fmt: skip


def poisoned(value: Any, key: str = "", seen: list[int] | None = None) -> Any:
    """The document of a comparison with an attack in every text that is not one of its own words."""
    seen = [0] if seen is None else seen
    if isinstance(value, dict):
        new = {"metadata", "clusters", "parameters", "settings", "environment"}
        return {poisoned(k, key, seen) if key in new else k: poisoned(v, k, seen) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, key, seen) for inner in value]
    if not isinstance(value, str) or key in ("kind", "metric"):
        return value
    seen[0] += 1
    return f"{value} {ATTACKS[seen[0] % len(ATTACKS)]}"


def poison(c: Comparison) -> Comparison:
    told = json.loads(c.to_json())
    spared = told.pop("metric"), [method.pop("name") for method in told["methods"]]
    everybody = {name: f"{ATTACKS[i % len(ATTACKS)]} {name}" for i, name in enumerate(c.federation.clients)}
    told = poisoned(told)
    told["metric"] = spared[0]
    for name, method in zip(spared[1], told["methods"], strict=True):
        method["name"] = name if name in ("local", "fedavg", "fedavg_ft") else f"{name} {ATTACKS[0]}"
    for method in told["methods"]:
        for seed in method["seeds"]:
            for part in ("validation", "test", "test_last"):
                seed[part]["clients"] = [*everybody.values()]
    told["federation"]["clients"] = [*everybody.values()]
    return Comparison.model_validate(told)


CLICKED = """
    for (const what of ["main input[type=radio]", ".legend button", "#clients button.link", "th button", "summary"]) {
        document.querySelectorAll(what).forEach((node) => node.click());
    }
    document.querySelectorAll("#comparison select, #client select").forEach((select) => {
        for (const option of [...select.options].reverse()) {
            select.value = option.value;
            select.dispatchEvent(new Event("change", { bubbles: true }));
        }
    });
    document.querySelectorAll(".plot").forEach((plot) => {
        const box = plot.getBoundingClientRect();
        for (const part of [0.2, 0.5, 0.8]) {
            const at = { clientX: box.left + part * box.width, clientY: box.top + box.height / 2, bubbles: true };
            plot.dispatchEvent(new PointerEvent("pointermove", at));
        }
    });
    const attributes = [...document.querySelectorAll("*")].flatMap((node) => [...node.attributes]);
    const leads = (a) => a.name === "href" && !/^(#|data:,$|https:\\/\\/)/.test(a.value);
    return [...document.querySelectorAll("img, iframe, object, embed, base"), ...attributes.filter((a) => leads(a) ||
        /^(on|srcdoc|formaction)/.test(a.name))].map((node) => node.outerHTML ?? `${node.name}=${node.value}`);
"""


def test_no_name_becomes_a_script_or_an_element(visit: Callable[..., Any], folder: Path) -> None:
    bad = poison(comparison(details=True, unseen=3, clients=24, seeds=2, rounds=10))
    shown = poison(SMALL)
    for pages in ((bad,), (bad, shown)):
        browser = visit(*pages)
        assert browser.execute_script(CLICKED) == []
        assert len(browser.execute_script("return [...document.scripts].map((s) => s.type)")) == 4
        assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
        for name in bad.federation.clients[:3]:
            assert name in browser.execute_script("return document.body.textContent")
        browser.switch_to.window(browser.current_window_handle)  # an alert would make this fail
    browser = visit(bad)
    slip = "<img src=x onerror=document.title=1>"
    browser.execute_script("document.querySelector('h1').innerHTML = arguments[0]", slip)
    told: list[str] = []
    for _ in range(400):
        told += [e["message"] for e in browser.get_log("browser")]
        if any("Content Security Policy" in message for message in told):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"the browser refused nothing: {told}")
    assert "comparison with plures" in browser.title


def test_no_cell_of_a_saved_table_runs_in_a_spreadsheet(visit: Callable[..., Any]) -> None:
    bad = poison(comparison(details=True, clients=24, seeds=2, rounds=10))
    browser = visit(bad)
    found = list(csv.reader(io.StringIO(saved(browser, "spread.csv", "#spread [data-save=csv]"))))
    assert [uncelled(line[0]) for line in found[1:]] == bad.federation.clients
    assert [line[0] for line in found[1:]] == [cell(name) for name in bad.federation.clients]
    button = "[data-save-table=clients]"
    whole = list(csv.reader(io.StringIO(saved(browser, "clients.csv", button))))
    for line in (*found, *whole):
        assert all(uncelled(words) != words or cell(words) == words for words in line)
    clients = bad.federation.clients
    assert sum(line[0].startswith("'") for line in found) == sum(cell(name) != name for name in clients) > 2
    gains = list(csv.reader(io.StringIO(saved(browser, "gain.csv", "#gain [data-save=csv]"))))
    assert any(words.startswith("-") and float(words) < 0 for line in gains[1:] for words in line)


def test_a_constant_far_below_all_others_is_an_arrow_beside_the_scale_of_gains(visit: Callable[..., Any]) -> None:
    """The others' gains lie between 0 and 3 points; the constant, 40 below, has no dot and stretches nothing."""
    values = {"local": [0.8] * 4, "fedavg": [0.81] * 4, "fedavg_ft": [0.82, 0.83, 0.82, 0.83], "constant": [0.4] * 4}
    titles = {name: name for name in values}
    browser = visit(scored({name: [own] for name, own in values.items()}, titles=titles))
    words, dots = browser.execute_script("""
        const plot = document.querySelector("#gain .plot svg");
        return [[...plot.querySelectorAll("text")].map((t) => t.textContent), plot.querySelectorAll("circle").length];
    """)
    assert "\u25c2 4 of 4 beyond the scale, mean \u221240.0" in words
    assert dots == 8
    assert not any("\u221210" in text for text in words)
    drawn = """
        const plot = document.querySelector(`#${arguments[0]} .plot svg`);
        return [...plot.querySelectorAll("text")].map((t) => t.textContent);
    """
    expected = {
        "tradeoff": "\u25be constant 40.0 %",
        "fairness": "\u25c2\u25be constant 40.0 %, 40.0 %",
        "spread": "\u25c2 4 of 4 beyond the scale, median 40.0 %",
    }
    for section, note in expected.items():
        words = browser.execute_script(drawn, section)
        assert note in words
        assert "60" not in words
        assert "83" in words or "82.5" in words, words


def test_a_constant_is_on_the_scale_of_curves_only_if_it_is_chosen(visit: Callable[..., Any]) -> None:
    """The others go from .1 to .4 with the first seed; the constant stays at -5."""
    titles = {name: name.capitalize() for name in ("local", "fedavg", "fedavg_ft", "constant")}
    found = scored({name: [[0.5] * 4] for name in titles}, titles=titles)
    far = found.method("constant")
    (seed,) = far.seeds
    low = seed.model_copy(update={"curve": [p.model_copy(update={"validation": -5.0}) for p in seed.curve]})
    methods = [far.model_copy(update={"seeds": [low]}) if m is far else m for m in found.methods]
    browser = visit(found.model_copy(update={"methods": methods}))
    words = """return [...document.querySelectorAll("#curves .plot svg text")].map((t) => t.textContent)"""
    note = "\u25be Constant \u2212500.0 %"
    assert note in browser.execute_script(words)
    assert "\u2212500" not in browser.execute_script(words)
    browser.execute_script("""
        [...document.querySelectorAll("#curves .legend button")].find((b) => b.textContent === "Constant").click();
    """)
    assert note not in browser.execute_script(words)
    assert "\u2212500" in browser.execute_script(words)


def test_no_learning_curves_without_validation_data(visit: Callable[..., Any]) -> None:
    found = scored({name: [[0.5] * 4] for name in ("local", "fedavg", "fedavg_ft")})
    for method in found.methods:
        for seed in method.seeds:
            seed.curve[:] = [p.model_copy(update={"validation": math.nan}) for p in seed.curve]
    browser = visit(found)
    ids = browser.execute_script("return [...document.querySelectorAll('main > section')].map((one) => one.id)")
    assert "curves" not in ids
    assert {"gain", "tradeoff", "spread"} <= set(ids)


def test_names_beside_dots_do_not_cover_each_other(visit: Callable[..., Any]) -> None:
    """Five methods at the same place, and one beside them at the edge: each has its name, none over another."""
    names = {
        "local": "Local only", "fedavg": "FedAvg", "fedavg_ft": "FedAvg + fine-tuning", "ditto": "SCAFFOLD MMMMM",
        "apfl": "Metadata clusters column=place", "fedper": "FedPer",
    }  # fmt: skip
    values = {name: [[0.8] * 4] for name in names} | {"fedper": [[0.801] * 4]}
    for width in (1200, 500):
        browser = visit(scored(values, titles=names), width=width)
        for section in ("tradeoff", "fairness"):
            found = browser.execute_script(
                """
                const texts = [...document.querySelectorAll(`#${arguments[0]} .plot text.halo`)];
                const boxes = texts.map((t) => [t.textContent, t.getBBox()]);
                return boxes.map(([words, b]) => [words, b.x, b.x + b.width, b.y, b.y + b.height]);
                """,
                section,
            )
            assert len(found) == len(names)
            for i, (_, left, right, top, bottom) in enumerate(found):
                for _, left2, right2, top2, bottom2 in found[:i]:
                    apart = (right <= left2 + 1, right2 <= left + 1, bottom <= top2 + 4, bottom2 <= top + 4)
                    assert any(apart), (section, width, found)


def test_a_long_name_on_a_phone_does_not_run_into_what_its_row_says(visit: Callable[..., Any]) -> None:
    names = {
        "local": "Local only",
        "fedavg": "FedAvg",
        "fedavg_ft": "Tuned",
        "ditto": "Metadata clusters column=population",
    }
    values = {name: [[0.5 + 0.1 * place] * 4] for place, name in enumerate(names)}
    browser = visit(scored(values, titles=names), width=390)
    for section, begins in (("gain", "harmed"), ("spread", "worst")):
        right, left = browser.execute_script(
            """
            const texts = [...document.querySelectorAll(`#${arguments[0]} .plot text`)];
            const rows = texts.filter((t) => t.textContent.startsWith(arguments[1]) && / [0-9]/.test(t.textContent));
            const [name, said] = [texts.find((t) => t.textContent.startsWith("Metadata")), rows[rows.length - 1]];
            return [name.getBoundingClientRect().right, said.getBoundingClientRect().left];
            """,
            section,
            begins,
        )
        assert right < left


def test_a_course_has_a_panel_for_each_experience_and_a_point_for_each_moment(visit: Callable[..., Any]) -> None:
    """RMSE on dry data 1 then 3 (2.5 and 3.5 with the seeds), on wet data 4 then 2: a step of 2 is as high in both."""
    runs = np.array([[[1.0, 4.0], [2.5, 2.0]], [[1.0, 4.0], [3.5, 2.0]]])
    course = Course("years", RMSE, ("dry <b>", "wet"), {"Forgetful": runs, "Careful": runs[:1]})
    found = "Nothing is \u201cclear\u201d <i>here</i>."
    story = Story("Why?", "wait.", [Block("a course", (found,), course)], ["a part"])
    for width, columns in ((1200, 2), (390, 1)):
        browser = visit(SMALL, width=width, story=story)
        assert browser.execute_script("return document.querySelector('.overview li').textContent") == found
        assert browser.execute_script("return document.querySelector('#comparison h2.name').textContent") == "a part"
        words, circles, lefts, wide = browser.execute_script("""
            const plot = document.querySelector("#course-years .plot > svg");
            const panels = [...plot.querySelectorAll(":scope > svg")];
            return [
              panels.map((panel) => [...panel.querySelectorAll("text")].map((t) => t.textContent)),
              panels.map((panel) => [...panel.querySelectorAll("circle")].map((c) => c.getBoundingClientRect().y)),
              new Set(panels.map((panel) => panel.getBoundingClientRect().x)).size,
              document.documentElement.scrollWidth,
            ];
        """)
        assert [[text for text in texts if text.startswith("tested on")] for texts in words] == [
            ["tested on dry <b>"],
            ["tested on wet"],
        ]
        assert [len(set(ys)) for ys in circles] == [1, 1]
        assert lefts == columns
        assert wide <= width
        browser.execute_script("document.querySelector('#course-years .plot').focus()")
        press(browser, "ArrowRight", "ArrowRight")
        tip = browser.execute_script("return document.querySelector('#course-years .tip').innerText")
        assert tip.split("\n") == ["Forgetful", "3.00 on dry <b>, after wet", "2.50 to 3.50 over seeds"]
    save = "#course-years [data-save=csv]"
    assert browser.find_element("css selector", save).get_attribute("aria-label") == "Download A course as CSV"


def test_the_page_of_a_client_without_a_score_says_why_and_has_its_other_scores(visit: Callable[..., Any]) -> None:
    """Of four clients, the last one has no C-index with any method, and the second one diverged with FedAvg."""
    metric = RMSE.model_copy(update={"title": "C-index", "undefined": "where no two can be compared"})
    scores = {"local": [0.5, 0.6, 0.7, None], "fedavg": [0.6, math.inf, 0.7, None], "fedavg_ft": [0.6, 0.7, 0.8, None]}
    found = scored({name: [own] for name, own in scores.items()}, metric=metric)
    for method in found.methods:
        method.seeds[0].test.metrics["mae"][3] = 0.25
    browser = visit(found, hash="#client=client%203")
    body = browser.execute_script("return document.getElementById('client').innerText")
    assert "The C-index is not defined for this client (where no two can be compared)." in body
    table = """
        const rows = [...document.querySelector("#client table").rows];
        return rows.map((row) => [...row.cells].map((cell) => cell.textContent));
    """
    head, *lines = browser.execute_script(table)
    beside = head.index("mean absolute error")
    assert head[:6] == ["method", "C-index", "95 % CI", "vs local", "vs FedAvg", "rank of client"]
    assert len(lines) == 3
    assert all(set(line[1:6]) == {"\N{EN DASH}"} and float(line[beside]) == 0.25 for line in lines)
    browser = visit(found, hash="#client=client%201")
    assert "is not defined" not in browser.execute_script("return document.getElementById('client').innerText")
    assert [line[1] for line in browser.execute_script(table) if line[0] == "FedAvg"] == ["diverged"]
