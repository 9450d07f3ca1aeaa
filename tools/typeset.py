"""Turn the plain-text equations of docstrings into HTML."""

from __future__ import annotations

import re
import unicodedata
from html import escape

GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "kappa", "mu", "nu", "pi", "rho", "sigma", "tau"),
    *("phi", "psi", "omega", "Delta", "Theta", "Sigma", "Phi", "Psi", "Omega"),
)
LAMBDA = unicodedata.lookup("GREEK SMALL LETTER LAMDA")
WORDS = {
    **{name: unicodedata.lookup(f"GREEK {'SMALL' if name.islower() else 'CAPITAL'} LETTER {name}") for name in GREEK},
    "lam": LAMBDA,
    "lambda": LAMBDA,
    "sum": "∑",
    "prod": "∏",
    "sqrt": "√",
    "inf": "∞",
    "grad": "∇",
    "in": "∈",
}
"""Words of an equation that stand for a letter or a sign."""

SIGNS = {
    "||": "\N{DOUBLE VERTICAL LINE}",
    "<-": "←",
    "->": "→",
    "<=": "≤",
    ">=": "≥",
    "-": "\N{MINUS SIGN}",
    "*": "\N{MIDDLE DOT}",
    "~": "\N{TILDE OPERATOR}",
}
TOKEN = re.compile(
    r"(?P<name>[A-Za-z]{3,}_[A-Za-z]{3,}(?:_\w+)*)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<script>[_^])(?P<inner>\((?:[^()]|\([^()]*\))*\)|\{[^}]*\}|-?\d+|[A-Za-z]+)"
    r"|(?P<sign>\|\||<-|<=|>=|->|[-*~])"
    r"|(?P<other>.)",
    re.DOTALL,
)
LITERAL = re.compile(r"(?<!\()``(?=[^`]*(?:min|<-| = | \+ |\|\|))([^`]{20,})``[.:;,]?(?=\s|$)")
"""An equation in a docstring: long enough, with a sign that equations have, and not in parentheses."""


def typeset(text: str) -> str:
    """An equation with Greek letters, subscripts and superscripts; all other words stay as they are."""
    return "".join(piece(match) for match in TOKEN.finditer(" ".join(text.split())))


def piece(match: re.Match[str]) -> str:
    """One token as HTML."""
    if word := match["word"]:
        return WORDS[word] if word in WORDS else f"<var>{word}</var>" if len(word) == 1 else word
    if script := match["script"]:
        tag = {"_": "sub", "^": "sup"}[script]
        inner = match["inner"]
        if inner.isalpha() and len(inner) == 2 and inner not in WORDS:
            return f"<{tag}><var>{inner}</var></{tag}>"
        return f"<{tag}>{typeset(inner[1:-1] if inner[0] in '({' else inner)}</{tag}>"
    if sign := match["sign"]:
        return SIGNS[sign]
    return match["name"] or escape(match["other"])


def displayed(paragraph: str) -> str:
    """A paragraph of a docstring with each equation on its own line."""
    pieces = LITERAL.split(paragraph)
    found = []
    for number, text in enumerate(pieces):
        if number % 2:
            found.append(f'<p class="equation">{typeset(text)}</p>')
        elif text.strip():
            found.append(text.strip())
    return "\n\n".join(found)
