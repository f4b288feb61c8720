"""Bars, as SVG that reads on light and dark pages."""

from collections.abc import Mapping
from textwrap import wrap
from xml.sax.saxutils import escape, quoteattr

from benchmarks.report import figure, spread
from benchmarks.rounds import OURS, Measure, Spread

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
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  rect { fill: #59636e }
  rect.ours { fill: #4493f8 }
  .spread { stroke: #9198a1 }
  .cut { stroke: #0d1117 }
}
"""


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
