"""Bars and curves, as SVG that reads on light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from benchmarks.report import figure, spread
from benchmarks.rounds import OURS, Measure, Spread

WIDTH, LABELS, BARS, ROW, HEAD, TOP = 860, 300, 380, 30, 34, 56
LINE, SMALL = 16, 130  # height of a small line, and its characters

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.faint { fill: #59636e; font-size: 12px }
.ours, .head { font-weight: 600 }
rect { fill: #afb8c1 }
rect.ours { fill: #0969da }
rect.beside { fill: none; stroke: #8c959f; stroke-width: 1.5 }
.spread { stroke: #59636e; stroke-width: 1.5 }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.curve { fill: none; stroke: #8c959f; stroke-width: 2.5 }
.curve.ours { stroke: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  rect { fill: #59636e }
  rect.ours { fill: #4493f8 }
  .spread { stroke: #9198a1 }
  .grid { stroke: #30363d }
  .curve { stroke: #768390 }
  .curve.ours { stroke: #4493f8 }
}
"""


class Group(NamedTuple):
    """Bars that belong together."""

    title: str
    found: Mapping[str, Spread]
    compared: Mapping[str, Spread]  # ratios, for the labels


def bars(title: str, measure: Measure, beside: str, groups: Sequence[Group], below: str) -> str:
    """Draw one bar for each contestant, the best of a group on top and ours highlighted.

    Args:
        title: What was done.
        measure: What the bars show.
        beside: With what the ratios compare.
        groups: The figures by contestant.
        below: On what it was measured.

    Returns:
        The picture.
    """
    scale = BARS / max(of.median for group in groups for of in group.found.values())
    small = wrap(below, SMALL)
    height = TOP + sum(HEAD + ROW * len(group.found) for group in groups) + 22 + LINE * len(small)
    better = "more" if measure.best is max else "less"
    said = f"{measure.title} in {measure.unit}, {better} is better; in brackets the ratio to {beside}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
        f"     aria-label={quoteattr(f'{title}: {said}')}>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="faint" x="12" y="44">{escape(said)}</text>',
    ]
    top = TOP
    for group in groups:
        lines.append(f'<text class="head" x="12" y="{top + 18}">{escape(group.title)}</text>')
        top += HEAD
        for name in sorted(group.found, key=lambda name: group.found[name].median, reverse=measure.best is max):
            kind = {OURS: ' class="ours"', beside: ' class="beside"'}.get(name, "")
            lines += _row(top, name, group, kind, factor=measure.factor, scale=scale)
            top += ROW
    for place, line in enumerate(reversed(small)):
        lines.append(f'<text class="faint" x="12" y="{height - 12 - LINE * place}">{escape(line)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _row(top: int, name: str, group: Group, kind: str, *, factor: float, scale: float) -> list[str]:
    of, middle = group.found[name], top + 11
    low, high = LABELS + of.low * scale, min(LABELS + of.high * scale, LABELS + BARS + 20)
    said = figure(of.median * factor)
    if name in group.compared:
        said += f" ({figure(group.compared[name].median)})"
    return [
        f'<text{kind} x="{LABELS - 10}" y="{top + 16}" text-anchor="end">{escape(name)}</text>',
        f'<rect{kind} x="{LABELS}" y="{top}" width="{of.median * scale:.1f}" height="22" rx="2">',
        f"<title>{spread(of, factor)}</title></rect>",
        f'<path class="spread" d="M {low:.1f} {middle} H {high:.1f}"/>',
        f'<text{kind} x="{max(LABELS + of.median * scale, high) + 8:.1f}" y="{top + 16}">{said}</text>',
    ]


def curves(title: str, axis: str, lines: Mapping[str, Sequence[tuple[float, float]]], below: str) -> str:
    """Draw shares, from 0 to 1, as curves; the first one is ours.

    Args:
        title: What all of it shows.
        axis: What goes to the right.
        lines: The points of each curve, by its name.
        below: On what it was measured.

    Returns:
        The picture.
    """
    left, width, top, high = 60, 560, TOP, 240
    most = max(x for points in lines.values() for x, _ in points)

    def place(x: float, y: float) -> str:
        return f"{left + width * x / most:.1f} {top + high * (1 - y):.1f}"

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + high + 76}" role="img"',
        f"     aria-label={quoteattr(title)}>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="faint" x="{left + width / 2}" y="{top + high + 40}" text-anchor="middle">{escape(axis)}</text>',
        f'<text class="faint" x="12" y="{top + high + 64}">{escape(below)}</text>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = top + high * (1 - share)
        drawn += [
            f'<path class="grid" d="M {left} {y:.1f} H {left + width}"/>',
            f'<text class="faint" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>',
        ]
    for x in range(math.floor(most) + 1):
        at = place(x, 0).split()[0]
        drawn.append(f'<text class="faint" x="{at}" y="{top + high + 18}" text-anchor="middle">{x}</text>')
    for number, (name, points) in enumerate(lines.items()):
        kind = "" if number else " ours"
        path = " L ".join(place(x, min(y, 1)) for x, y in points)
        right, height = map(float, place(*points[-1]).split())
        drawn += [
            f'<path class="curve{kind}" d="M {path}"/>',
            f'<text class="{kind.strip()}" x="{right + 12}" y="{height + 4}">{escape(name)}</text>',
        ]
    return "\n".join([*drawn, "</svg>"]) + "\n"
