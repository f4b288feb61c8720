"""Bars, as SVG that reads on light and dark pages; and one picture of all that is compared with a peer."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from benchmarks.report import Results, figure, spread
from benchmarks.rounds import OURS, Benchmark, Measure, Spread

# How claims begin that compare us with a peer.
COMPARISONS = ("the throughput of ", "the requests a second of ")

WIDTH, LABELS, BARS, ROW, TOP = 860, 300, 380, 30, 62
LINE, SMALL = 16, 130  # height of a small line, and its characters
LONGEST = 12  # times our bar; what is longer is cut, and says its figure

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.faint { fill: #59636e; font-size: 12px }
.ours { font-weight: 600 }
rect { fill: #afb8c1 }
rect.ours { fill: #0969da }
.spread { stroke: #59636e; stroke-width: 1.5 }
.cut { fill: none; stroke: #ffffff; stroke-width: 3 }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.curve { fill: none; stroke: #8c959f; stroke-width: 2.5 }
.curve.ours { stroke: #0969da }
.even { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 3 }
circle { fill: #0969da }
.behind { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  rect { fill: #59636e }
  rect.ours { fill: #4493f8 }
  .spread { stroke: #9198a1 }
  .cut { stroke: #0d1117 }
  .grid { stroke: #30363d }
  .curve { stroke: #768390 }
  .curve.ours { stroke: #4493f8 }
  .even { stroke: #9198a1 }
  circle { fill: #4493f8 }
  .behind { fill: #f0883e }
}
"""


# The axis of `overview`: times a peer's throughput, on a logarithmic scale.
LEAST, MOST = 0.5, 8.0
NAMES, AXIS, LINES = 360, 400, 40  # width of the names, of the axis, and the height of a row


class Compared(NamedTuple):
    """Our throughput as a multiple of a peer's."""

    peer: str
    work: str
    ratio: Spread


def overview(title: str, groups: Mapping[str, Sequence[Compared]], below: str) -> str:
    """Draw a point for each comparison, with its quartiles; what is left of 1 is behind its peer.

    Args:
        title: What all of it shows.
        groups: The comparisons, by what they have in common.
        below: On what it was measured.

    Returns:
        The picture.
    """
    small = wrap(below, SMALL)
    rows = sum(map(len, groups.values()))
    bottom = TOP + 26 + 34 * len(groups) + LINES * rows
    height = bottom + 30 + LINE * len(small)
    said = "throughput as a multiple of the peer's, logarithmic; right of 1 is faster, a line shows the quartiles"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
        f"     aria-label={quoteattr(f'{title}: {said}')}>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="faint" x="12" y="44">{escape(said)}</text>',
    ]
    for times in (0.5, 1, 2, 4, 8):
        x = _place(times)
        lines += [
            f'<path class="{"even" if times == 1 else "grid"}" d="M {x:.1f} {TOP + 18} V {bottom}"/>',
            f'<text class="faint" x="{x:.1f}" y="{TOP + 12}" text-anchor="middle">{times:g}</text>',
        ]
    top = TOP + 26
    for group, compared in groups.items():
        lines.append(f'<text class="ours" x="12" y="{top + 22}">{escape(group)}</text>')
        top += 34
        for each in compared:
            lines += _point(top, each)
            top += LINES
    for place, line in enumerate(reversed(small)):
        lines.append(f'<text class="faint" x="12" y="{height - 12 - LINE * place}">{escape(line)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _place(times: float) -> float:
    share = math.log(min(max(times, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return NAMES + AXIS * share


def _point(top: int, of: Compared) -> list[str]:
    ratio, middle = of.ratio, top + LINES / 2 - 4
    kind = ' class="behind"' if round(ratio.median, 2) < 1 else ""
    return [
        f'<text x="{NAMES - 14}" y="{top + 14}" text-anchor="end">{escape(of.peer)}</text>',
        f'<text class="faint" x="{NAMES - 14}" y="{top + 29}" text-anchor="end">{escape(of.work)}</text>',
        f'<path class="spread" d="M {_place(ratio.low):.1f} {middle} H {_place(ratio.high):.1f}"/>',
        f'<circle{kind} cx="{_place(ratio.median):.1f}" cy="{middle}" r="6"><title>{spread(ratio)}</title></circle>',
        f'<text x="{NAMES + AXIS + 20}" y="{middle + 5}">{figure(ratio.median)} x</text>',
    ]


def bars(title: str, measure: Measure, found: Mapping[str, Spread], below: str) -> str:
    """Draw one bar for each contestant, the best on top and ours highlighted.

    Args:
        title: What was done.
        measure: What the bars show.
        found: The figures by contestant.
        below: On what it was measured.

    Returns:
        The picture.
    """
    order = sorted(found, key=lambda name: found[name].median, reverse=measure.best is max)
    longest = max(of.median for of in found.values())
    if OURS in found and found[OURS].median > 0:
        longest = min(longest, LONGEST * found[OURS].median)
    scale = BARS / (longest or 1.0)
    small = wrap(below, SMALL)
    height = TOP + ROW * len(order) + 22 + LINE * len(small)
    said = f"{measure.title} in {measure.unit}, {'more' if measure.best is max else 'less'} is better"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"',
        f"     aria-label={quoteattr(f'{title}: {said}')}>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="faint" x="12" y="44">{escape(said)}</text>',
    ]
    for place, name in enumerate(order):
        lines += _row(TOP + ROW * place, name, found[name], measure.factor, scale)
    for place, line in enumerate(reversed(small)):
        lines.append(f'<text class="faint" x="12" y="{height - 12 - LINE * place}">{escape(line)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _row(top: int, name: str, of: Spread, factor: float, scale: float) -> list[str]:
    kind = ' class="ours"' if name == OURS else ""
    length = min(of.median * scale, BARS)
    middle = top + 11
    lines = [
        f'<text{kind} x="{LABELS - 10}" y="{top + 16}" text-anchor="end">{escape(name)}</text>',
        f'<rect{kind} x="{LABELS}" y="{top}" width="{length:.1f}" height="22" rx="2">',
        f"<title>{spread(of, factor)}</title></rect>",
    ]
    end = LABELS + length
    if of.median * scale > BARS + 1:
        lines.append(f'<path class="cut" d="M {end - 26} {top - 2} l 6 13 l -6 13"/>')
    else:
        low, high = LABELS + of.low * scale, min(LABELS + of.high * scale, LABELS + BARS + 20)
        lines.append(f'<path class="spread" d="M {low:.1f} {middle} H {high:.1f}"/>')
        end = max(end, high)
    lines.append(f'<text{kind} x="{end + 8:.1f}" y="{top + 16}">{figure(of.median * factor)}</text>')
    return lines


def compared(benchmarks: Mapping[str, Benchmark], results: Results) -> dict[str, list[Compared]]:
    """Return all that is compared with a peer, in a service first."""
    groups: dict[str, list[Compared]] = {"With a driver and a real server": [], "The pool by itself": []}
    in_service, by_itself = groups.values()
    for name, result in results.items():
        group = in_service if name.startswith(("http", "redis", "sqlite")) else by_itself
        for what, ratio in result.claimed.items():
            if what.startswith(COMPARISONS):
                peer = what.partition(" of ")[2].removesuffix(", same reset")
                group.append(Compared(peer, benchmarks[name].title, ratio))
    return groups


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
