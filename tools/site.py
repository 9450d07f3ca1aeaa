"""What the documentation site adds to the files in docs: generated pages, results, and drawings of diagrams."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from tools.diagrams import drawn
from tools.evidence import ROOT
from tools.pages import navigation, pages

RESULTS = "benchmarks/results/"
BROUGHT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files outside docs that are pages of the site, besides the results of the benchmarks."""

LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def brought() -> dict[str, str]:
    """Every file outside docs that is a page of the site, with its path there."""
    found = sorted((ROOT / RESULTS).glob("*.md"))
    return BROUGHT | {f"{RESULTS}{file.name}": f"results/{file.name}" for file in found}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the methods by family, and the results, to the navigation."""
    results = [{title(path): path} for path in brought().values() if path.startswith("results/")]
    filled: dict[str, list[Any]] = {"Methods": navigation(), "Results": results}
    config.nav = [
        {name: [*(inner if isinstance(inner, list) else [inner]), *filled.get(name, [])]}
        for item in config.nav or []
        for name, inner in item.items()
    ]
    config.validation.nav.not_found = 0
    return config


def title(path: str) -> str:
    """Title of a page of results."""
    return path.rpartition("/")[2].removesuffix(".md").replace("-", " ").capitalize()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs, and the generated ones."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for source, path in brought().items():
        files.append(File.generated(config, path, content=brought_text(source)))
    return files


def brought_text(source: str) -> str:
    """A file from outside docs, under a title."""
    text = (ROOT / source).read_text(encoding="utf-8")
    return text if text.startswith("# ") else f"# {title(brought()[source])}\n\n{text}"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace diagrams with drawings, and adapt links to files outside docs."""
    return drawn(LINK.sub(lambda match: relinked(match, page.file.src_uri), markdown))


def relinked(match: re.Match[str], here: str) -> str:
    """A link, adapted to the site."""
    target, anchor = match[1], match[2] or ""
    outward = target.removeprefix("../")
    known = brought()
    if "/" not in here and target.startswith("../") and outward in known:
        return f"]({known[outward]}{anchor})"
    if here in known.values() and target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')}{anchor})"
    return match[0]
