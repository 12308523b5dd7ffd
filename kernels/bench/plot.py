"""Draw the newest scan measurements of results.csv: `python kernels/bench/plot.py` writes docs/images/scan.svg."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from record import ROOT
from table import RESULTS, read

IMAGE = ROOT / "docs" / "images" / "scan.svg"
PANELS = (
    ("scan", "forward", "Op only, forward"),
    ("scan", "forward+backward", "Op only, forward and backward"),
    ("scan_layer", "forward", "From the projections to the gated output, forward"),
    ("scan_layer", "forward+backward", "From the projections to the gated output, forward and backward"),
)
OURS = "sigma"
COLORS = {OURS: "#1a6fb5", "mamba3-official": "#d9822b", "mamba2": "#8a9a5b", "reference": "#b0b0b0"}
OTHER_COLOR = "#9a8bb5"
WIDTH, LEFT, BAR_WIDTH = 860, 190, 480
BAR, GAP, SHAPE_GAP, PANEL_GAP = 15, 3, 26, 44
CUT = 1.25  # a bar ends at this many times the slowest of ours and the official ones, so that these stay legible

Row = dict[str, str]


def newest(rows: Iterable[Row], device: str | None = None) -> dict[tuple[str, str], dict[str, dict[str, Row]]]:
    """The last row of each provider: {(op, direction): {shape: {provider: row}}}, on the device of the last row."""
    rows = [row for row in rows if row["op"].startswith("scan") and row["ms"]]
    device = device or (rows[-1]["device"] if rows else None)
    found: dict[tuple[str, str], dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row["device"] == device:
            found.setdefault((row["op"], row["direction"]), {}).setdefault(row["shape"], {})[row["provider"]] = row
    return found


def floor_ms(row: Row) -> float | None:
    """What the row's percent_of_floor is a percentage of."""
    return float(row["ms"]) * float(row["percent_of_floor"]) / 100 if row["percent_of_floor"] else None


def color(provider: str) -> str:
    """A colour of its own for the main ones."""
    return next((value for name, value in COLORS.items() if provider.startswith(name)), OTHER_COLOR)


def text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "start", weight: str = "normal") -> str:
    """One line of text; y is its baseline."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="#222">{escape(words)}</text>'
    )


def short(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def bar(row: Row, y: float, scale: float, limit: float, ours_ms: float | None) -> list[str]:
    """One provider: name, bar, milliseconds, and how many times ours."""
    ms, provider = float(row["ms"]), row["provider"]
    width = min(ms, limit) * scale
    words = f"{short(ms)} ms"
    if ms > limit:
        words += " (cut)"
    if ours_ms is not None and provider != OURS:
        words += f", {short(ms / ours_ms)}x"
    return [
        text(LEFT - 8, y + BAR - 4, provider, anchor="end", weight="bold" if provider == OURS else "normal"),
        f'<rect x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{color(provider)}"/>',
        text(LEFT + width + 6, y + BAR - 4, words),
    ]


def shape_block(shape: str, rows: dict[str, Row], y: float, scale: float, limit: float) -> tuple[list[str], float]:
    """All providers of one shape, the quickest first, and the floor as a line through them."""
    order = sorted(rows.values(), key=lambda row: float(row["ms"]))
    ours_ms = float(rows[OURS]["ms"]) if OURS in rows else None
    parts, top = [text(LEFT, y - 5, shape, weight="bold")], y
    for row in order:
        parts += bar(row, y, scale, limit, ours_ms)
        y += BAR + GAP
    if (floor := floor_ms(order[0])) is not None:
        x = LEFT + floor * scale
        parts.append(f'<path d="M{x:.1f} {top - 2:.1f}V{y:.1f}" stroke="#c00" stroke-width="1.5"/>')
    return parts, y + SHAPE_GAP


def panel(title: str, shapes: dict[str, dict[str, Row]], y: float) -> tuple[list[str], float]:
    """One op and direction."""
    rows = [row for providers in shapes.values() for row in providers.values()]
    main = [float(row["ms"]) for row in rows if row["provider"] in (OURS, "mamba3-official")]
    limit = min(max(float(row["ms"]) for row in rows), CUT * max(main)) if main else max(float(r["ms"]) for r in rows)
    parts = [text(20, y, title, size=14, weight="bold")]
    y += SHAPE_GAP
    for shape, providers in shapes.items():
        block, y = shape_block(shape, providers, y, BAR_WIDTH / limit, limit)
        parts += block
    return parts, y + PANEL_GAP - SHAPE_GAP


def draw(rows: Sequence[Row]) -> str:
    """The whole picture.

    Raises:
        ValueError: there is no row to draw.
    """
    found = newest(rows)
    parts, y = [], 64.0
    last: Row = {}
    for op, direction, title in PANELS:
        if shapes := found.get((op, direction)):
            drawn, y = panel(title, shapes, y)
            parts += drawn
            last = next(reversed(next(reversed(shapes.values())).values()))
    if not parts:
        raise ValueError("results.csv has no row of the scan; measure first: make bench ARGS='--op scan'")
    note = f"{last['device']}, torch {last['torch']}, Triton {last['triton']}, bf16; median; red: floor of the hardware"
    heading = [text(20, 26, "Mamba-3 scan, milliseconds (less is better)", size=16, weight="bold"), text(20, 44, note)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
            'font-family="Helvetica, Arial, sans-serif">',
            f'<rect width="{WIDTH}" height="{y:.0f}" fill="#fff"/>',
            *heading,
            *parts,
            "</svg>",
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(prog="plot.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--image", type=Path, default=IMAGE)
    chosen = parser.parse_args(arguments)
    picture = draw(read(chosen.results))
    chosen.image.parent.mkdir(parents=True, exist_ok=True)
    chosen.image.write_text(picture, encoding="utf-8", newline="\n")
    print(f"wrote {chosen.image}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
