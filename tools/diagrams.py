"""Draw the Mermaid diagrams of the documents, so that the site needs no script to show them.

python -m tools.diagrams MERMAID.JS    draws those that have changed (the file comes with the npm package mermaid)

Each drawing is stored in docs/assets/diagrams under the digest of its source. A headless Chromium draws it.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
DRAWINGS = DOCS / "assets" / "diagrams"
READABLE = 0.6
"""Smallest scale of a drawing, whose letters are 16 pixels high; on a narrower page, it scrolls."""

BLOCK = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
SETTINGS = {
    "startOnLoad": False,
    "theme": "neutral",
    "fontFamily": "sans-serif",
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False, "useMaxWidth": True},
    "sequence": {"useMaxWidth": True},
}
PAGE = """<!doctype html><meta charset="utf-8"><body><script src="{script}"></script><script>
mermaid.initialize({settings});
(async () => {{
  for (const [name, text] of Object.entries({sources})) {{
    const {{ svg }} = await mermaid.render("d" + name, text);
    const kept = document.createElement("pre");
    kept.id = "kept-" + name;
    kept.textContent = svg;
    document.body.append(kept);
  }}
}})();
</script>"""
CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")


def digest(source: str) -> str:
    """Name of a diagram's drawing."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def sources() -> dict[str, str]:
    """Every diagram of the documents, by the name of its drawing."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(DOCS.rglob("*.md"))]
    return {digest(source): source for text in texts for source in BLOCK.findall(text)}


def drawn(text: str) -> str:
    """A document with every diagram replaced by its drawing."""
    return BLOCK.sub(lambda match: figure(match[1]), text)


def figure(source: str) -> str:
    """A diagram's drawing, on one line, large enough to read its text."""
    file = DRAWINGS / f"{digest(source)}.svg"
    if not file.exists():
        raise SystemExit(f"the diagram {source.strip().splitlines()[1]!r} is not drawn: run python -m tools.diagrams")
    svg = " ".join(file.read_text(encoding="utf-8").split())
    width = float(re.findall(r'viewBox="\S+ \S+ (\S+) ', svg)[0])
    svg = svg.replace('style="max-width:', f'style="min-width: {READABLE * width:.0f}px; max-width:', 1)
    return f'<figure class="diagram">{svg}</figure>'


def draw(missing: dict[str, str], script: Path) -> dict[str, str]:
    """SVG of some diagrams."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        sources = json.dumps(missing).replace("</", "<\\/")
        page.write_text(PAGE.format(script=script.as_uri(), settings=json.dumps(SETTINGS), sources=sources), "utf-8")
        options = (f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000", "--dump-dom")
        done = subprocess.run([*CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, check=True)
    found = re.findall(r'<pre id="kept-(\w+)">(.*?)</pre>', done.stdout, re.DOTALL)
    return {name: html.unescape(svg) for name, svg in found}


def main() -> None:
    wanted = sources()
    missing = {name: source for name, source in wanted.items() if not (DRAWINGS / f"{name}.svg").exists()}
    if missing and len(sys.argv) != 2:
        raise SystemExit(__doc__)
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    made = draw(missing, Path(sys.argv[1]).resolve()) if missing else {}
    if made.keys() != missing.keys():
        raise SystemExit(f"{len(missing.keys() - made.keys())} diagrams could not be drawn: look for errors in them")
    for name, svg in made.items():
        (DRAWINGS / f"{name}.svg").write_text(svg + "\n", encoding="utf-8")
    for file in DRAWINGS.glob("*.svg"):
        if file.stem not in wanted:
            file.unlink()


if __name__ == "__main__":
    main()
