"""SVG by hand: bars of a group of workloads, and the roofline."""

from html import escape
from math import atan, degrees, log10

INK, FAINT, OWN, PEER, BEST, LIMIT = (
    "#222", "#777", "#1f6fb4", "#c3cad1", "#8894a0", "#c4342d")
PALETTE = ["#1f6fb4", "#d9822b", "#2f8f5b", "#8e5bb5", "#c4342d", "#7a6a2a", "#d06aa0", "#4a4a4a"]

PANEL, ROW, LABEL, VALUE = 345, 17, 82, 62  # widths and the height of a bar with its gap
HEAD, GAP, GUTTER, COLUMNS = 40, 26, 24, 3
# Bars end at so many times the slower of mbconv and its best peer.
CLIP = 2.5


class Svg:
    def __init__(self, width, height, title, subtitle):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="DejaVu Sans, Verdana, sans-serif">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>']
        self.text(20, 30, title, size=17, weight="bold")
        self.text(20, 49, subtitle, fill=FAINT)

    def text(self, x, y, text, size=11, fill=INK, anchor="start", weight="normal", turn=0):
        rotated = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
            f'text-anchor="{anchor}"{rotated}>{escape(text)}</text>')

    def rect(self, x, y, width, height, fill):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" '
                          f'height="{height:.1f}" fill="{fill}"/>')

    def line(self, x1, y1, x2, y2, stroke=FAINT, width=1.0, dash=""):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                          f'stroke="{stroke}" stroke-width="{width}" stroke-dasharray="{dash}"/>')

    def circle(self, x, y, fill, stroke, title=""):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" '
                          f'stroke="{stroke}" stroke-width="1.5">'
                          f'<title>{escape(title)}</title></circle>')

    def __str__(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def bars(title, rows, subtitle):
    """A panel for each workload, a bar for each library, the machine's limit as a line."""
    names = [name for name in rows[0].results if any(name in row.times for row in rows)]
    height = HEAD + ROW * len(names)
    lines = -(-len(rows) // COLUMNS)
    svg = Svg(16 + (PANEL + GUTTER) * max(2, min(COLUMNS, len(rows))), 70 + lines * (height + GAP),
              title, f"{subtitle}; median time in µs, the line is the machine's limit")
    for n, row in enumerate(rows):
        line, column = divmod(n, COLUMNS)
        panel(svg, 20 + column * (PANEL + GUTTER), 70 + line * (height + GAP), row, names)
    return str(svg)


def panel(svg, left, top, row, names):
    svg.text(left, top + 12, row.workload.name, size=12, weight="bold")
    svg.text(left + PANEL, top + 12, row.workload.label, fill=FAINT, anchor="end")
    compared = [us for us in (row.own, row.times.get(row.best)) if us]
    longest = max(row.times.values(), default=1)
    end = min(longest, CLIP * max(compared)) if compared else longest
    room = PANEL - LABEL - VALUE
    for i, name in enumerate(names):
        y, us = top + HEAD + i * ROW, row.times.get(name)
        own = name == "mbconv"
        svg.text(left + LABEL - 6, y + 10, name, anchor="end", weight="bold" if own else "normal")
        if us is None:
            svg.text(left + LABEL + 3, y + 10, "-", fill=FAINT)
            continue
        svg.rect(left + LABEL, y, room * min(us / end, 1), ROW - 4,
                 OWN if own else BEST if name == row.best else PEER)
        if us > end:  # cut off
            x = left + LABEL + room - 14
            svg.line(x, y + ROW - 4, x + 5, y, "#fff", 3)
        weight = "bold" if us == min(row.times.values()) else "normal"
        svg.text(left + PANEL, y + 10, number(us), anchor="end", weight=weight)
    if row.limit:
        x = left + LABEL + room * min(row.limit / end, 1)
        svg.line(x, top + HEAD - 5, x, top + HEAD + ROW * len(names) - 2, LIMIT, 1.5)
        svg.text(x, top + HEAD - 9, f"limit {number(row.limit)}", size=10, fill=LIMIT,
                 anchor="middle")


def number(us):
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}"


class Axis:
    """Logarithmic, from `low` to `high` on `start` to `end` pixels."""

    def __init__(self, low, high, start, end):
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value):
        part = log10(value / self.low) / log10(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self):
        steps = (m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5))
        return [t for t in steps if self.low <= t <= self.high]


def roofline(rows, machine, subtitle):
    """Speed over intensity, which is FLOP / bytes of input, weights and output."""
    width, height, right = 1000, 640, 780
    marks = [mark for row in rows for mark in speeds(row)]
    # Far enough to the left to name the steepest roof.
    low = min(min(m[1] for m in marks) / 1.5, machine.peak / machine.near / 4)
    x = Axis(low, max(m[1] for m in marks) * 1.5, 70, right)
    y = Axis(min(m[2] for m in marks) / 2, max(machine.peak, *(m[2] for m in marks)) * 1.3,
             height - 60, 70)
    svg = Svg(width, height, "Roofline, 1 thread", subtitle)
    for t in x.ticks():
        svg.line(x(t), y.start, x(t), y.end, "#eee")
        svg.text(x(t), y.start + 16, f"{t:g}", fill=FAINT, anchor="middle")
    for t in y.ticks():
        svg.line(x.start, y(t), x.end, y(t), "#eee")
        svg.text(x.start - 8, y(t) + 4, f"{t:g}", fill=FAINT, anchor="end")
    svg.text((x.start + x.end) / 2, height - 20, "FLOP per byte of input, weights and output",
             anchor="middle")
    svg.text(24, (y.start + y.end) / 2, "GFLOP/s", anchor="middle", turn=-90)
    roofs(svg, x, y, machine)

    groups = list(dict.fromkeys(row.workload.group for row in rows))
    colours = dict(zip(groups, PALETTE * len(groups)))
    boxes = [(x(intensity), y(speed), 5, 5) for _, intensity, speed in marks]
    boxes.append(((x.start + x.end) / 2, y(machine.peak), (x.end - x.start) / 2, 3))
    for row in rows:
        points(svg, x, y, row, colours[row.workload.group])
    for row in rows:
        name(svg, x, y, row, boxes)
    legend(svg, right + 22, 86, colours)
    return str(svg)


def speeds(row):
    """(library, intensity, GFLOP/s) of mbconv and of the best peer."""
    intensity = row.workload.flops / row.workload.bytes
    return [(library, intensity, row.workload.flops / row.times[library] / 1e3)
            for library in ("mbconv", row.best) if library in row.times]


def roofs(svg, x, y, machine):
    for bandwidth, name in (machine.near, "second-level cache"), (machine.far, "memory"):
        # From the lower or left edge to the peak or the right one.
        a, b = max(x.low, y.low / bandwidth), min(x.high, machine.peak / bandwidth)
        if a < b:
            x1, y1, x2, y2 = x(a), y(a * bandwidth), x(b), y(b * bandwidth)
            svg.line(x1, y1, x2, y2, LIMIT, 1.2, "5 3")
            slope = (y1 - y2) / (x2 - x1)
            svg.text(x1 + 12, y1 - 12 * slope - 6, f"{name}, {bandwidth:.0f} GB/s", size=10,
                     fill=LIMIT, turn=-round(degrees(atan(slope))))
    svg.line(x.start, y(machine.peak), x.end, y(machine.peak), LIMIT, 1.5)
    svg.text(x.end - 6, y(machine.peak) - 6, f"FMA peak, {machine.peak:.0f} GFLOP/s", fill=LIMIT,
             anchor="end")


def points(svg, x, y, row, colour):
    """mbconv filled, the best peer hollow, a line between."""
    marks = speeds(row)
    if len(marks) == 2:
        svg.line(x(marks[0][1]), y(marks[0][2]), x(marks[1][1]), y(marks[1][2]), colour)
    for library, intensity, speed in reversed(marks):
        svg.circle(x(intensity), y(speed), colour if library == "mbconv" else "#fff", colour,
                   f"{row.workload.name}, {library}: {speed:.1f} GFLOP/s")


def name(svg, x, y, row, boxes):
    """The workload's name below its points, above or beside them, where there is room."""
    marks = [(x(intensity), y(speed)) for _, intensity, speed in speeds(row)]
    if not marks:
        return
    text, half = row.workload.name, 3 * len(row.workload.name)
    (left, highest), (_, lowest) = min(marks, key=lambda m: m[1]), max(marks, key=lambda m: m[1])
    aside = [(left + side * (half + 9), cy) for cy in (lowest, highest) for side in (1, -1)]
    for cx, cy in [(left, lowest + 12), (left, highest - 12), *aside]:
        if all(abs(cx - u) > half + w or abs(cy - v) > 5 + h for u, v, w, h in boxes):
            svg.text(cx, cy + 3, text, size=9, fill=FAINT, anchor="middle")
            boxes.append((cx, cy, half, 5))
            return


def legend(svg, left, top, colours):
    for n, (group, colour) in enumerate(colours.items()):
        svg.circle(left, top + 20 * n, colour, colour)
        svg.text(left + 10, top + 4 + 20 * n, group)
    top += 20 * len(colours) + 14
    for n, (fill, text) in enumerate([(FAINT, "filled: mbconv"), ("#fff", "hollow: best peer")]):
        svg.circle(left, top + 20 * n, fill, FAINT)
        svg.text(left + 10, top + 4 + 20 * n, text)
