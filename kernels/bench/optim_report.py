"""Tables and pictures of the optimizer benchmark, written into docs/optimizers.md between its markers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plot import text
from record import ROOT

PAGE = ROOT / "docs" / "optimizers.md"
IMAGES = ROOT / "docs" / "images"
BASE = "normuon"
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of Student's t by degrees of freedom."""
WIDTH, LEFT, ROW, TOP = 760, 190, 22, 60
Row = dict[str, Any]


def cells(rows: Iterable[Row]) -> dict[tuple[str, float, float], dict[int, float]]:
    """(contender, rate, decay) -> seed -> validation loss; a failed run counts as infinite."""
    found: dict[tuple[str, float, float], dict[int, float]] = {}
    for row in rows:
        run = row["run"]
        loss = row["val_loss"] if row["status"] == "ok" else math.inf
        found.setdefault((run["contender"], run["lr"], run["decay"]), {})[run["seed"]] = loss
    return found


def finalists(rows: Sequence[Row]) -> dict[str, tuple[float, float, dict[int, float]]]:
    """Contender -> (rate, decay, losses by seed) of its best cell: the lowest loss on the first seed."""
    best: dict[str, tuple[float, float, dict[int, float]]] = {}
    for (name, lr, decay), losses in cells(rows).items():
        if 0 in losses and (name not in best or losses[0] < best[name][2][0]):
            best[name] = (lr, decay, losses)
    return dict(sorted(best.items(), key=lambda item: mean(item[1][2].values())))


def difference(losses: dict[int, float], base: dict[int, float]) -> str:
    """Mean of the paired differences by seed, with the 95 % interval of Student's t."""
    pairs = [losses[seed] - base[seed] for seed in sorted(losses.keys() & base.keys())]
    if len(pairs) < 2:
        return "-"
    half = T_975[len(pairs) - 1] * stdev(pairs) / math.sqrt(len(pairs))
    return f"{mean(pairs):+.4f} ± {half:.4f}"


def timing(rows: Iterable[Row], name: str) -> tuple[float, float] | None:
    """Milliseconds of a step, and of its optimizer and features, of a contender; None when nothing was timed.

    Medians over its timing runs; where there are none, over its runs that had the device alone.
    """
    own = [row for row in rows if row["run"]["contender"] == name and row["status"] == "ok"]
    timed = [row for row in own if is_timing(row)] or [row for row in own if row.get("jobs", 1) == 1]
    if not timed:
        return None
    columns = ([r["step_ms"] for r in timed], [r["opt_step_ms"] + r["features_ms"] for r in timed])
    middle = [sorted(column)[len(column) // 2] for column in columns]
    return middle[0], middle[1]


def is_timing(row: Row) -> bool:
    """Whether a row is that of a short run that only its times are taken of."""
    return row.get("kind") == "timing"


def state_bytes(rows: Iterable[Row], name: str) -> float | None:
    """Bytes of optimizer state a parameter; None when no run of the contender came that far."""
    own = (row for row in rows if row["run"]["contender"] == name and row["status"] == "ok")
    return next((row["state_bytes_per_parameter"] for row in own), None)


def table(rows: Sequence[Row], timings: Sequence[Row] = ()) -> list[str]:
    """One line a contender, the best first."""
    best = finalists(rows)
    lines = [
        "| optimizer | lr | decay | seeds | validation loss (nats per token) | minus normuon, paired, 95 % interval |"
        " step ms | optimizer ms | state bytes a parameter |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (lr, decay, losses) in best.items():
        times, state = timing([*rows, *timings], name), state_bytes(rows, name)
        milliseconds = "- | -" if times is None else f"{times[0]:.0f} | {times[1]:.0f}"
        base = best[BASE][2] if BASE in best and name != BASE else {}
        spread = f" ± {stdev(losses.values()):.4f}" if len(losses) > 1 else ""
        lines.append(
            f"| {name} | {lr:g} | {decay:g} | {len(losses)} | {mean(losses.values()):.4f}{spread} |"
            f" {difference(losses, base)} | {milliseconds} | {'-' if state is None else f'{state:.1f}'} |"
        )
    return lines


def grid_table(rows: Sequence[Row]) -> list[str]:
    """First seed: contender by rate, at the best decay of each."""
    found = {key: losses[0] for key, losses in cells(rows).items() if 0 in losses}
    rates = sorted({lr for _, lr, _ in found})
    lines = ["| first seed, lr | " + " | ".join(f"{lr:g}" for lr in rates) + " |", "| --- |" + " --- |" * len(rates)]
    for name in dict.fromkeys(name for name, _, _ in found):
        line = []
        for lr in rates:
            losses = [loss for (n, rate, _), loss in found.items() if (n, rate) == (name, lr)]
            line.append(f"{min(losses):.3f}" if losses else "")
        lines.append(f"| {name} | " + " | ".join(line) + " |")
    return lines


def picture(rows: Sequence[Row], title: str) -> str:
    """Each contender's seeds as dots on a line, their mean as a bar."""
    best = {name: [v for v in losses.values() if math.isfinite(v)] for name, (_, _, losses) in finalists(rows).items()}
    best = {name: values for name, values in best.items() if values}
    low, high = min(min(v) for v in best.values()), max(max(v) for v in best.values())
    scale = (WIDTH - LEFT - 90) / max(high - low, 1e-9)
    parts = [text(20, 28, title, size=14, weight="bold")]
    for index, (name, values) in enumerate(best.items()):
        y, middle = TOP + ROW * index, LEFT + (mean(values) - low) * scale
        parts += [text(LEFT - 14, y + 4, name, anchor="end"), text(WIDTH - 66, y + 4, f"{mean(values):.4f}")]
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - 80}" stroke="#ddd"/>')
        parts += [
            f'<circle cx="{LEFT + (v - low) * scale:.1f}" cy="{y}" r="3.5" fill="#1a6fb5" fill-opacity="0.6"/>'
            for v in values
        ]
        parts.append(f'<path d="M{middle:.1f} {y - 7}v14" stroke="#c00" stroke-width="2"/>')
    height = TOP + ROW * len(best) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"]) + "\n"


def section(tier: str, rows: Sequence[Row], timings: Sequence[Row] = ()) -> str:
    """The text between the markers of a tier."""
    failed = [row for row in rows if row["status"] != "ok"]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    head = (
        f"{len(rows)} runs ({len(failed)} failed) on {rows[0]['device']}, torch {rows[0]['torch']}, commit {commits};"
        f" {rows[0]['steps']} steps, {rows[0]['tokens']:,} tokens, {rows[0]['parameters']:,} parameters."
    )
    if timings:
        timed = ", ".join(dict.fromkeys(row["commit"] for row in timings))
        head += f" Times are of short runs that had the device alone, commit {timed}."
    image = f"![Validation loss at the end, tier {tier}](images/optimizers_{tier}.svg)"
    return "\n".join([head, "", *table(rows, timings), "", image, "", *grid_table(rows)])


def write_report(rows: Sequence[Row]) -> None:
    """Replace the section of every tier that has rows, and draw its picture. Of timing runs only the times are used.

    Raises:
        ValueError: the page lacks the markers of a tier.
    """
    page = PAGE.read_text("utf-8")
    for tier in dict.fromkeys(row["run"]["tier"] for row in rows):
        of_tier = [row for row in rows if row["run"]["tier"] == tier]
        own, timings = [r for r in of_tier if not is_timing(r)], [r for r in of_tier if is_timing(r)]
        begin, end = f"<!-- tier {tier} -->\n", f"\n<!-- end of tier {tier} -->"
        if begin not in page or end not in page:
            raise ValueError(f"{PAGE.name} has no {begin.strip()} ... {end.strip()}")
        before, _, rest = page.partition(begin)
        page = before + begin + section(tier, own, timings) + end + rest.partition(end)[2]
        image = IMAGES / f"optimizers_{tier}.svg"
        image.write_text(picture(own, f"Tier {tier}: validation loss at the end (nats per token)"), "utf-8")
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    raise SystemExit(f"run {Path(__file__).with_name('optim.py').name} --report")
