"""Drawings of a method's layout: what a client has, what the server keeps, and what travels between them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from html import escape

from plures.method import Block, Bound, Clustered, Frozen, Generated, Known, Mixed, Personal, Share, Shared, Sized, View
from plures.run.cost import traffic

KINDS: dict[type[Share], tuple[str, str]] = {
    Shared: ("shared", "shared by all"),
    Clustered: ("clustered", "one per cluster"),
    Mixed: ("mixed", "one per client, mixed"),
    Generated: ("generated", "generated for each client"),
    View: ("view", "read only"),
    Personal: ("personal", "stays with the client"),
    Frozen: ("frozen", "never changes"),
    Known: ("known", "facts about the client"),
    Sized: ("known", "the size of its network"),
}
"""Every kind of share: its class in the style sheet, and its label."""

AT_SERVER = {"generated": "generator", "view": "combinations"}
"""The server's part of shares that have no model there."""

WIDTH, ROW, BOX, LEFT, RIGHT = 460, 58, 150, 10, 300
TOP, HIGH = 34, 42


@dataclass(frozen=True)
class Part:
    """A block in the drawing; sizes in bytes of the small model of the catalogue.

    Attributes:
        name: name of the block.
        kind: class in the style sheet.
        told: label of the kind.
        size: of one client's copy.
        up: sent in a round.
        down: received in a round.
        rows: number of models that the server keeps of it; 0 if it keeps none.
    """

    name: str
    kind: str
    told: str
    size: int
    up: int
    down: int
    rows: int


def parts(bound: Bound) -> list[Part]:
    """The blocks of a method."""
    return [part(bound, block) for block in bound.blocks]


def part(bound: Bound, block: Block) -> Part:
    """One block: what it is and what it costs, apart from what views need from clients."""
    kind, told = next(KINDS[known] for known in type(block.share).__mro__ if known in KINDS)
    alone = copy.copy(bound)
    alone.blocks = (block,)
    up = sum(map(bound.nbytes, bound.travelling(block))) + bound.weight_bytes(block)
    _, down = traffic(alone)
    size = sum(bound.initial[slot][path].nbytes for slot, path in block.leaves)
    return Part(block.name, kind, told, size, up, down, kept(bound, block) if up or down else 0)


def kept(bound: Bound, block: Block) -> int:
    """Copies of a block at the server before the first round: one, one per cluster, or one per client."""
    share, setting = block.share, bound.setting
    if isinstance(share, Clustered):
        return max(share.clusters, int(share.grouping.start(share.clusters, setting).max()) + 1)
    return len(setting) if isinstance(share, Mixed) else 1


def telling(bound: Bound) -> int:
    """Bytes of a client's own leaves that views of the server need."""
    return sum(bound.initial[slot][path].nbytes for slot, path in bound.view_inputs())


def drawing(title: str, bound: Bound) -> str:
    """The layout as inline SVG on one line; colours come from the style sheet, so it follows light and dark mode."""
    found = parts(bound)
    told = telling(bound)
    height = TOP + ROW * (len(found) + (1 if told else 0)) + 6
    said = "; ".join(f"{p.name}: {p.told}" for p in found)
    drawn = [
        f'<svg class="layout" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{title}: {said}")}">',
        f'<text class="who" x="{LEFT + BOX / 2}" y="20">each client</text>',
        f'<text class="who" x="{RIGHT + BOX / 2}" y="20">server</text>',
    ]
    for number, one in enumerate(found):
        drawn += row(one, TOP + ROW * number)
    if told:
        y = TOP + ROW * len(found) + HIGH / 2
        drawn += [arrow(y, "up", told), f'<text class="note" x="{RIGHT}" y="{y + 4}">sent for views</text>']
    return "".join([*drawn, "</svg>"])


def row(one: Part, y: int) -> list[str]:
    """One block: at the client, at the server, and the arrows between them."""
    drawn = box(one, LEFT, y, 1)
    if one.rows:
        drawn += box(one, RIGHT, y, one.rows)
    if one.up:
        drawn.append(arrow(y + 12, "up", one.up))
    if one.down:
        drawn.append(arrow(y + 34, "down", one.down))
    return drawn


def box(one: Part, x: int, y: int, copies: int) -> list[str]:
    """A block as a rectangle, or as a pile of rectangles if there are several models."""
    behind = min(copies, 3) - 1
    drawn = [
        f'<rect class="{one.kind}" x="{x + 4 * n}" y="{y - 4 * n}" width="{BOX - 10}" height="{HIGH}" rx="5"/>'
        for n in range(behind, -1, -1)
    ]
    many = f"{copies} \N{MULTIPLICATION SIGN} " if copies > 1 else ""
    made = AT_SERVER.get(one.kind) if x == RIGHT else None
    middle = x + (BOX - 10) / 2
    return [
        *drawn,
        f'<text class="name" x="{middle}" y="{y + 18}">{escape(one.name)}</text>',
        f'<text class="size" x="{middle}" y="{y + 33}">{made or f"{many}{one.size:,} B"}</text>',
    ]


def arrow(y: float, way: str, size: int) -> str:
    """An arrow up to the server or down to the client, with the bytes that it carries."""
    start, end = LEFT + BOX - 4, RIGHT - 8
    tip, back = (end, end - 7) if way == "up" else (start, start + 7)
    return (
        f'<path class="way" d="M{start} {y}H{end}M{back} {y - 4}L{tip} {y}L{back} {y + 4}"/>'
        f'<text class="bytes" x="{(start + end) / 2}" y="{y - 4}">{size:,} B</text>'
    )
