"""Libraries included in the page: d3 and Observable Plot, as their authors published them (``manifest.json``)."""

from __future__ import annotations

import json
from importlib.resources import files


def manifest() -> dict[str, dict[str, str]]:
    """File to package, version, file in the package, licence file and SHA-256; in the order in which they run."""
    found: dict[str, dict[str, str]] = json.loads(files(__name__).joinpath("manifest.json").read_text(encoding="utf-8"))
    return found


def scripts() -> list[str]:
    """The libraries' text, each after its licence."""
    found = []
    for name, about in manifest().items():
        licence = files(__name__).joinpath(about["licence"]).read_text(encoding="utf-8")
        text = files(__name__).joinpath(name).read_text(encoding="utf-8")
        found.append(f"/* {about['package']} {about['version']}\n\n{licence}*/\n{text}")
    return found
