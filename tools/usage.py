"""How to call each method: commands, or Python if the data must be made first. The tests run all of it."""

from __future__ import annotations

from collections.abc import Mapping

from plures.methods import Entry

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "depthfl": (
        "plures run heart depthfl --model mlp --model-set hidden=[32,16]",
        "plures compare heart --method depthfl --model mlp --model-set hidden=[32,16]",
    ),
    "fedmd": (
        "plures run heart fedmd --data donate=0.1",
        "plures compare heart --method fedmd --data donate=0.1",
    ),
    "dapper": (
        "plures run heart dapper --data donate=0.1",
        "plures compare heart --method dapper --data donate=0.1",
    ),
    "energy": ("plures run heart energy --set links=country",),
    "hierfavg": ("plures run heart hierfavg --set column=country",),
    "metadata_clusters": ("plures run heart metadata_clusters --set column=country",),
    "mocha": ("plures run heart mocha --model logistic", "plures compare heart --method mocha --model logistic"),
}
"""Commands for methods that need facts that not every data set has."""

POORER = """\
import plures
from plures.federation import degrade

noise = {{"cleveland": 0.0, "hungarian": 1.0, "switzerland": 0.0, "va": 0.5}}
noisy = degrade(plures.load("heart"), completeness=0.9, noise=noise)
result = plures.compare(noisy, ["{name}"], rounds=20, seeds=3)
print(result.row("{name}").mean)
"""
PYTHON: Mapping[str, str] = {
    "debias": POORER,
    "quality": POORER,
    "personal_se": """\
import numpy as np

import plures

pictures = np.random.default_rng(0).normal(size=(150, 3, 8, 8)).astype(np.float32)
federation = plures.from_arrays(pictures, np.arange(150) % 2, client=np.repeat(["a", "b", "c"], 50))
spec = {{"model": "resnet", "model_options": {{"se": True}}}}
result = plures.compare(federation, ["{name}"], rounds=20, seeds=3, **spec)
print(result.row("{name}").mean)
""",
}
"""Python for methods whose data or network must be made."""


def use(entry: Entry) -> str:
    """A section of a method's page that shows how to call it."""
    if entry.name in PYTHON:
        return f"## Use it\n\n```python\n{PYTHON[entry.name].format(name=entry.name)}```"
    chosen = "".join(f" --set {name}={word(values[0])}" for name, values in list(entry.space.items())[:1])
    usual = f"plures run har {entry.name}{chosen}", f"plures compare har --method {entry.name}"
    lines = "\n".join(COMMANDS.get(entry.name, usual))
    return f"## Use it\n\n```sh\n{lines}\n```"


def word(value: object) -> str:
    """A parameter's value as the command line reads it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
