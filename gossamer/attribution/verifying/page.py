"""A report as one page that opens offline: scatter plots, and every edge in a table. No script."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from gossamer.attribution.verifying.classes import CLASSES, IN_WORDS, MODES, CheckedEdge

SIZE = 340
"""Width and height of a plot, in pixels."""

MARGIN = 44
"""Around its axes."""

ROOM = 1.08
"""What the axes reach, in parts of the largest weight."""

PANELS = ("linear", "direct", "total")
"""Modes that are drawn."""

COLOURS = ("#1a7f5a", "#c2571a", "#3566c4", "#8a4fbf", "#6b7280")
"""One for each class, legible on light and dark."""

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
:root { --ink: #1b1e24; --soft: #6b7280; --line: #d5d8de; --back: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #9aa1ad; --line: #343944; --back: #0e1014; }
}
html { background: var(--back); color: var(--ink); }
body { margin: 0 auto; max-width: 1280px; padding: 20px; font: 14px/1.45 system-ui, sans-serif; }
h1 { font-size: 20px; margin: 0 0 4px; }
p { margin: 4px 0; }
.soft, figcaption, caption { color: var(--soft); }
.plots { display: flex; flex-wrap: wrap; gap: 16px; margin: 16px 0; }
figure { margin: 0; max-width: 340px; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); fill: none; }
svg .same { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .band { fill: var(--soft); opacity: 0.12; }
table { border-collapse: collapse; margin: 12px 0; }
caption { text-align: left; padding: 4px 0; }
th, td { padding: 3px 10px 3px 0; text-align: left; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")


def report_page(report: Any) -> str:
    """The page's text, of a VerifyReport."""
    about = report.about
    said = [str(about[name]) for name in ("model", "prompt", "target") if about.get(name)]
    parts = [
        f"<h1>{html.escape(report.sentence)}</h1>",
        f'<p class="soft">{html.escape(" · ".join(said))}</p>',
        *(f"<p>{html.escape(line)}</p>" for line in report.remarks()),
        '<div class="plots">',
        *(scatter(report.edges, mode, report.tolerance) for mode in PANELS if report.edges),
        "</div>",
        _classes(report),
        _modes(report),
        _edges(report.edges),
        _nodes(report),
    ]
    return page_of("Edges, predicted and measured", "\n".join(parts))


def page_of(title: str, body: str) -> str:
    """A whole page around a body that is HTML already."""
    return PAGE.substitute(title=html.escape(title), body=body)


@dataclass(frozen=True, slots=True)
class _Axes:
    """A square plot whose axes both go from −reach to reach."""

    reach: float

    def at(self, value: float) -> float:
        """Pixels from the left, or from the bottom."""
        start, end = MARGIN, SIZE - MARGIN / 2
        return start + (end - start) * (value + self.reach) / (2 * self.reach)

    def place(self, x: float, y: float) -> str:
        """A point of a line."""
        return f"{self.at(x):.1f},{SIZE - self.at(y):.1f}"

    def band(self, tolerance: float) -> str:
        """What is near enough."""
        low, high = 1 - tolerance, 1 + tolerance
        parts = ""
        for s in (self.reach / high, -self.reach / high):
            corners = (self.place(0.0, 0.0), self.place(s, s * low), self.place(s, s * high))
            parts += f'<polygon class="band" points="{" ".join(corners)}"/>'
        return parts

    def frame(self) -> str:
        """The axes, their ends and the diagonal."""
        start, end = MARGIN, SIZE - MARGIN / 2
        ends = (-self.reach / ROOM, 0.0, self.reach / ROOM)
        ticks = "".join(
            f'<text x="{self.at(v):.1f}" y="{SIZE - MARGIN + 14}" text-anchor="middle">{v:.3g}'
            f'</text><text x="{MARGIN - 5}" y="{SIZE - self.at(v) + 4:.1f}" '
            f'text-anchor="end">{v:.3g}</text>'
            for v in ends
        )
        corners = f"{self.place(-self.reach, -self.reach)} {self.place(self.reach, self.reach)}"
        return (
            f'<rect class="axis" x="{start}" y="{SIZE - end}" width="{end - start}" '
            f'height="{end - start}"/><polyline class="same" points="{corners}"/>{ticks}'
            f'<text x="{SIZE // 2}" y="{SIZE - 8}" text-anchor="middle">predicted</text>'
            f'<text x="{MARGIN}" y="{SIZE - end - 6}">measured</text>'
        )


def scatter(edges: Sequence[CheckedEdge], mode: str, tolerance: float) -> str:
    """Weights against one mode's measured effects; what lies outside is drawn at the rim."""
    axes = _Axes(max(abs(e.weight) for e in edges) * ROOM or 1.0)
    drawn = ""
    for e in edges:
        x, y = e.weight, _rim(getattr(e, mode), axes.reach)
        drawn += (
            f'<circle cx="{axes.at(x):.1f}" cy="{SIZE - axes.at(y):.1f}" r="3.2" '
            f'fill="{COLOURS[CLASSES.index(e.kind)]}" fill-opacity="0.75">'
            f"<title>{html.escape(_told(e, mode))}</title></circle>"
        )
    within = sum(
        abs(getattr(e, mode) - e.weight) <= tolerance * abs(e.weight) + e.floor for e in edges
    )
    label = (
        f"{IN_WORDS[mode]}: {within} of {len(edges)} within {tolerance:.0%} of the edge's weight"
    )
    return (
        f'<figure><svg width="{SIZE}" height="{SIZE}" role="img" aria-label="{html.escape(label)}">'
        f"{axes.band(tolerance)}{axes.frame()}{drawn}</svg>"
        f"<figcaption>{html.escape(label)}</figcaption></figure>"
    )


def _rim(value: float, reach: float) -> float:
    return 0.0 if math.isnan(value) else max(-reach, min(reach, value))


def _told(edge: CheckedEdge, mode: str) -> str:
    return (
        f"{edge.source} {edge.source_label} → {edge.target} {edge.target_label}: predicted "
        f"{edge.weight:.4g}, measured {getattr(edge, mode):.4g}, {edge.kind}"
    )


def _classes(report: Any) -> str:
    rows = [
        (
            f'<span class="dot" style="background:{colour}"></span>{kind}',
            f"{sum(e.kind == kind for e in report.edges)}",
        )
        for kind, colour in zip(CLASSES, COLOURS, strict=True)
    ]
    return table("Classes", ("class", "edges"), rows)


def _modes(report: Any) -> str:
    rows = [(IN_WORDS[name], f"{share:.1%}") for name, share in report.shares().modes.items()]
    return table(f"Share within {report.tolerance:.0%} of the weight", ("mode", "share"), rows)


def _edges(edges: Sequence[CheckedEdge]) -> str:
    rows = [
        (
            html.escape(f"{e.source} {e.source_label}"),
            html.escape(f"{e.target} {e.target_label}"),
            e.kind,
            *(f"{getattr(e, name):.4g}" for name in ("weight", *MODES)),
            f"{e.others_total}",
        )
        for e in edges
    ]
    heads = ("source", "target", "class", "weight", *MODES, "other flips")
    caption = "Effects are clean minus changed, divided by the share that was taken away."
    return table(caption, [head.replace("_", " ") for head in heads], rows)


def _nodes(report: Any) -> str:
    if not report.nodes:
        return ""
    rows = [
        (
            html.escape(f"{n.node} {n.label}"),
            "yes" if n.agrees else "no",
            *(f"{value:.4g}" for value in (n.predicted, n.total_small, n.total)),
        )
        for n in report.nodes
    ]
    heads = ("node", "agrees", "predicted", "total small", "total")
    return table("Effects of nodes on the target", heads, rows)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; cells are HTML already, and those of numbers stand on the right."""
    body = ""
    for row in rows:
        body += "<tr>" + "".join(f"<td{_class(cell)}>{cell}</td>" for cell in row) + "</tr>\n"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption>'
        f"<tr>{head}</tr>\n{body}</table></div>"
    )


def _class(cell: str) -> str:
    return ' class="n"' if cell[:1].isdigit() or cell[:1] == "-" or cell == "nan" else ""
