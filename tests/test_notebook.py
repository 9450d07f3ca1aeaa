"""What a notebook shows of a federation, a comparison and a diagnosis."""

from __future__ import annotations

import re

import numpy as np

import plures
from plures.diagnose import diagnose
from plures.notebook import notebook

ENTRY = "<img src=x onerror=alert(1)>"


def people(count: int) -> plures.Federation:
    x = np.arange(20.0 * count).reshape(-1, 1)
    names = np.repeat([f"{ENTRY} {n}" if n == 0 else f"ward {n}" for n in range(count)], 20)
    return plures.from_arrays(x, (x[:, 0] % 2).astype(int), names, name="a & b", copies="allow")


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_a_federation_shows_its_clients_escaped_and_the_first_twelve_alone():
    federation = people(15)
    html = federation._repr_html_()
    head, first, *rest = cells(html)
    assert head == ["client", "train", "validation", "test"]
    assert first[0] == "&lt;img src=x onerror=alert(1)&gt; 0"
    sizes = [federation.splits[split].sizes.tolist() for split in ("train", "validation", "test")]
    assert [row[1:] for row in (first, *rest)] == [[str(s[n]) for s in sizes] for n in range(12)]
    assert "and 3 more" in html
    assert "Federation a &amp; b: 15 clients" in html
    assert "<img" not in html


def test_a_comparison_shows_its_rows():
    result = plures.compare(people(2), ["ditto"], rounds=1, seeds=1, learning_rates=[0.1], tune_rounds=0)
    html = result._repr_html_()
    _, *rows = cells(html)
    assert [(row[0], row[1]) for row in rows] == [(row.title, f"{row.mean:.4f}") for row in result.rows()]
    assert "Comparison on a &amp; b" in html
    assert not re.search(r"<script|<style|src=|href=", html)


def test_a_diagnosis_shows_its_text_escaped():
    found = diagnose(people(2), clients=2, rows=20)
    html = found._repr_html_()
    assert html.startswith("<pre>")
    assert "a &amp; b" in html
    assert "<img" not in html


def test_controls_are_escaped():
    assert "\\u202e" in notebook("a\u202eb", [], [], [])
