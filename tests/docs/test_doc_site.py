"""The documentation site is built without a warning, needs no network, and fits a phone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tools.drawing import KINDS

from browsing import chromium, load, resize
from plures import METHODS

pytest.importorskip("material", reason="the site needs the extra docs")
ROOT = Path(__file__).parents[2]
RESOURCE = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\s\">]+)|<link\b[^>]*\bhref=\"?([^\s\">]+)")
LOOKED_AT = ("index", "tutorial", "methods/index", "methods/apple", "guides/report", "reference/run", "architecture")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_page_is_there(site):
    assert {file.stem for file in (site / "methods").glob("*.html")} == {*METHODS, "index"}
    for page in ("tutorial", "guides/own-data", "reference/cli", "results/families", "coverage", "contributing"):
        assert (site / f"{page}.html").exists(), page


def test_nothing_is_loaded_from_elsewhere(site):
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        found = [a or b for a, b in RESOURCE.findall(text)]
        assert found, page
        assert not [address for address in found if "//" in address], page
        assert 'class="mermaid"' not in text, f"{page}: a diagram that is not drawn would fetch Mermaid"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_no_path_of_this_machine_is_told(site):
    for page in pages(site):
        assert str(ROOT) not in page.read_text(encoding="utf-8"), page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("browser"), "--allow-file-access-from-files") as started:
        yield started


def opened(browser: Any, file: Path, width: int, theme: str) -> list[str]:
    """Show a page; returns the addresses that it requested."""
    resize(browser, width, theme)
    load(browser, file.as_uri())
    sent = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("page", LOOKED_AT)
def test_a_browser_asks_for_files_alone_and_nothing_is_cut_off(site, browser, page):
    for width, theme in ((360, "light"), (1280, "dark")):
        asked = opened(browser, site / f"{page}.html", width, theme)
        assert asked
        assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{page} is {wide} pixels wide on {width}"
        cut = "return [...document.querySelectorAll('figure.layout')].filter(f => f.scrollWidth > f.clientWidth).length"
        assert browser.execute_script(cut) == 0, f"the drawing of {page} is cut off at {width} pixels"
        serious = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
        assert not [message for message in serious if "search" not in message], serious
        scheme = browser.execute_script("return document.body.getAttribute('data-md-color-scheme')")
        assert scheme == {"light": "default", "dark": "slate"}[theme]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_in_drawings_can_be_read(site, browser, theme):
    """Contrast of at least 4.5 between the text of a block and its colour, for every kind of share."""
    opened(browser, site / "methods" / "index.html", 1280, theme)
    contrasts = browser.execute_script(
        """
        const light = colour => {
          const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const over = (text, back) => {
          const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number), under = back.match(/[\\d.]+/g).map(Number);
          return `rgb(${[r, g, b].map((v, i) => a * v + (1 - a) * under[i]).join(",")})`;
        };
        return [...document.querySelectorAll(".legend .key")].map(key => {
          const back = getComputedStyle(key).backgroundColor;
          const text = over(getComputedStyle(document.querySelector(".md-typeset p")).color, back);
          const [low, high] = [light(text), light(back)].sort((a, b) => a - b);
          return [key.className, (high + 0.05) / (low + 0.05)];
        });
        """
    )
    assert len(contrasts) == len(KINDS)
    for name, contrast in contrasts:
        assert contrast >= 4.5, (name, contrast)
