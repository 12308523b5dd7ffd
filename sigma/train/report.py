"""report.html: one self-contained page about a run, written at its end and by `sigma report`.

Reads only the files of the run folder (`metrics.jsonl`, `final.json`, `samples/`, `resolved_args.txt`,
`run_manifest.json`, `status.json`), so a report can be made of a running, finished or crashed run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from sigma.core.errors import SigmaError
from sigma.core.files import write_atomic
from sigma.train.chart import Line, Rule, line_chart
from sigma.train.history import History, read_history

STYLE = """
:root{color-scheme:light dark;--fg:#1c2330;--bg:#fff;--soft:#5d6878;--line:#d9dee6;--card:#f6f8fa;
--c0:#2563eb;--c1:#d97706;--c2:#059669;--c3:#9333ea;--c4:#dc2626}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ef;--bg:#14181f;--soft:#98a3b3;--line:#323a46;--card:#1c222b;
--c0:#60a5fa;--c1:#fbbf24;--c2:#34d399;--c3:#c084fc;--c4:#f87171}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1380px;margin:2rem auto;
padding:0 1.2rem}
h1{margin:0}h2{margin:2.2rem 0 .6rem;font-size:1.15rem}.quiet,text{color:var(--soft);fill:var(--soft)}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.tile{background:var(--card);border-radius:8px;padding:.6rem 1rem;min-width:8.5rem}
.tile b{display:block;font-size:1.35rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:8px;padding:.7rem}
figcaption{font-weight:600}svg{width:100%;height:auto}
text{font:11px system-ui}.grid{stroke:var(--line);fill:none}.rule{stroke:var(--soft);stroke-dasharray:4 4;fill:none}
.curve{fill:none;stroke-width:1.8}.legend{display:flex;flex-wrap:wrap;gap:0 1rem;font-size:.85rem}
table{border-collapse:collapse;font-size:.9rem}
td,th{text-align:left;padding:.2rem .9rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:var(--card);padding:.8rem;border-radius:8px;white-space:pre-wrap;overflow-wrap:anywhere}
.yes{color:var(--c2)}.no{color:var(--c4)}
""" + "".join(
    f".curve.c{i}{{stroke:var(--c{i})}}circle.c{i}{{fill:var(--c{i})}}span.c{i}{{color:var(--c{i})}}" for i in range(5)
)


class ReportError(SigmaError):
    """The folder is not a run."""

    exit_code = 2


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report.html` and return its path. Raises ReportError when the folder holds no run."""
    if not (run_dir / "metrics.jsonl").exists():
        raise ReportError(f"{run_dir} has no metrics.jsonl; give the output folder of a run with --run")
    path = run_dir / "report.html"
    write_atomic(path, render(run_dir).encode("utf-8"))
    return path


def render(run_dir: Path) -> str:
    """The page as text."""
    history = read_history(run_dir / "metrics.jsonl")
    status = _read_json(run_dir / "status.json")
    final = _read_json(run_dir / "final.json")
    if "step" in status and final.get("step") != status["step"]:  # about the model before the run was continued
        final = {}
    body = [
        f"<h1>SIGMA run: {escape(run_dir.name)}</h1>",
        f"<p class=quiet>{escape(_state(status))}</p>",
        _tiles(history, final),
        _verdicts(final),
        "<h2>Curves</h2><div class=charts>" + "".join(_charts(history, final)) + "</div>",
        "<h2>Text samples</h2>" + _samples([run_dir / str(row["file"]) for row in history.of_kind("sample")]),
        "<h2>Events</h2>" + _events(history),
        "<h2>Where the time went</h2>" + _phases(history, final),
        "<h2>Configuration</h2>" + _text_file(run_dir / "resolved_args.txt"),
        "<h2>Versions and data</h2>" + _text_file(run_dir / "run_manifest.json"),
    ]
    title = f"<title>SIGMA: {escape(run_dir.name)}</title>"
    head = f"<!doctype html><html lang=en><meta charset=utf-8>{title}<style>{STYLE}</style>"
    return head + "\n".join(body) + "</html>\n"


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; an empty one when there is none, or when the file was damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _state(status: dict[str, Any]) -> str:
    """Where the run stood when status.json was written: a killed process could not write that it ended."""
    if not {"state", "step", "steps", "updated"} <= status.keys():
        return "State: unknown."
    updated = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(status["updated"]))
    return f"State at {updated} UTC: {status['state']}, step {status['step']} of {status['steps']}."


def _number(value: Any, form: str = ".3f") -> str:
    return format(value, form) if isinstance(value, int | float) else "-"


def _tiles(history: History, final: dict[str, Any]) -> str:
    train = history.last("train")
    tiles = [
        ("validation, bits per byte", _number(final.get("val_bpb", history.last("eval").get("val_bpb")))),
        ("training loss, nats (smoothed)", _number(train.get("loss_ema", train.get("loss")))),
        ("steps", _number(train.get("step"), ",d")),
        ("tokens", _number(train.get("tokens_seen_total"), ",d")),
        ("tokens/s", _number(train.get("effective_tokens_per_s"), ",.0f")),
        ("memory, GB", _number(train.get("mem_gb"), ".2f")),
        ("skipped steps", _number(train.get("skipped_steps", 0), "d")),
    ]
    return (
        "<div class=tiles>"
        + "".join(f"<div class=tile>{escape(name)}<b>{value}</b></div>" for name, value in tiles)
        + "</div>"
    )


COMPARISONS = [
    ("gzip_bpb", "gzip -9 of the whole validation text"),
    ("witten_bell_bpb", "Witten-Bell bigram over the same tokens that the model saw"),
    ("xz_bpb", "xz -9e of the whole validation text"),
]
CONTEXT_GAIN = 0.1
"""Bits per byte by which later positions should be better than the first ones."""


def _verdicts(final: dict[str, Any]) -> str:
    if not final:
        return "<p class=quiet>The final validation has not run yet.</p>"
    bpb = final["val_bpb"]
    rows = [f"<tr><td>this model<td class=n>{bpb:.4f}<td></tr>"]
    for key, label in COMPARISONS:
        other = final.get(key)
        if other is not None:
            rows.append(f"<tr><td>{label}<td class=n>{other:.4f}<td>{_verdict(bpb < other)}</tr>")
    early, late = final.get("bpb_first_16"), final.get("bpb_from_128")
    if early is not None and late is not None:
        rows.append(f"<tr><td>positions below 16 of a window<td class=n>{early:.4f}<td></tr>")
        helped = f"positions from 128: context helps by {early - late:.3f}, and {CONTEXT_GAIN} or more is expected"
        rows.append(f"<tr><td>{helped}<td class=n>{late:.4f}<td>{_verdict(early - late >= CONTEXT_GAIN)}</tr>")
    size = f"{final.get('val_bytes', 0):,} bytes of text that the training never saw, split off by document"
    return (
        f"<h2>Final validation</h2><p class=quiet>{size}.</p>"
        f"<table><tr><th><th>bits per byte<th>model is better</tr>{''.join(rows)}</table>"
    )


def _verdict(better: bool) -> str:
    return "<span class=yes>yes</span>" if better else "<span class=no>no</span>"


def _charts(history: History, final: dict[str, Any]) -> Iterable[str]:
    rules = [Rule(key.removesuffix("_bpb"), final[key]) for key, _ in COMPARISONS if final.get(key) is not None]
    yield line_chart(
        "Bits per byte",
        [
            Line("training", history.series("train", "train_bpb"), "c0"),
            Line("validation", history.series("eval", "val_bpb"), "c1", dots=True),
        ],
        rules,
    )
    for title, kind, names in (
        ("Loss, nats per token", "train", ["loss", "loss_ema"]),
        ("Learning rate", "train", ["lr"]),
        ("Gradient norm", "train", ["grad_norm"]),
        ("Tokens per second", "train", ["core_tokens_per_s", "effective_tokens_per_s"]),
        ("Router: information in nats / ln E", "train", ["rib_retained_info", "rib_compression", "rib_collapse"]),
        (
            "Differential attention: lambda",
            "train",
            ["diff_attn_lambda_mean", "diff_attn_lambda_min", "diff_attn_lambda_max"],
        ),
        ("Memory, GB", "train", ["mem_gb"]),
    ):
        lines = [Line(name, history.series(kind, name), f"c{i}") for i, name in enumerate(names)]
        yield line_chart(title, lines)


def _samples(paths: list[Path], most: int = 6) -> str:
    files = [path for path in paths if path.is_file()]
    if not files:
        return "<p class=quiet>No sample yet.</p>"
    chosen = files if len(files) <= most else [files[round(i * (len(files) - 1) / (most - 1))] for i in range(most)]
    return "".join(
        f"<h3>{escape(f.stem)}</h3><pre>{escape(f.read_text(encoding='utf-8', errors='replace'))}</pre>" for f in chosen
    )


def _events(history: History) -> str:
    rows = [row for row in history.of_kind("event") if row.get("event") != "checkpoint_deleted"]  # retention at work
    if not rows:
        return "<p class=quiet>None: no restart, skipped step or fallback.</p>"
    hidden = {"v", "run", "kind", "step", "seg", "t", "event"}
    lines = []
    for row in rows[-200:]:
        details = ", ".join(f"{k}: {v}" for k, v in row.items() if k not in hidden and v != "")
        lines.append(
            f"<tr><td class=n>{row.get('step', '')}<td>{escape(str(row.get('event', '')))}<td>{escape(details)}</tr>"
        )
    return f"<table><tr><th>step<th>event<th>details</tr>{''.join(lines)}</table>"


def _phases(history: History, final: dict[str, Any]) -> str:
    """Seconds of each phase up to the last training row, and of the final validation after it."""
    totals: dict[str, float] = {}
    for row in history.of_kind("train"):
        for name, value in row.items():
            if name.startswith("phase_") and name.endswith("_s") and isinstance(value, int | float):
                totals[name[6:-2]] = totals.get(name[6:-2], 0.0) + value
    if "val_s" in final:
        totals["final validation"] = final["val_s"]
    whole = sum(totals.values())
    if not whole:
        return "<p class=quiet>Nothing measured yet.</p>"
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{seconds:,.1f} s<td class=n>{100 * seconds / whole:.1f} %</tr>"
        for name, seconds in sorted(totals.items(), key=lambda item: -item[1])
    )
    return f"<table><tr><th>phase<th>seconds<th>share</tr>{rows}</table>"


def _text_file(path: Path) -> str:
    if not path.exists():
        return "<p class=quiet>Not written yet.</p>"
    text = escape(path.read_text(encoding="utf-8"))
    return f"<details><summary>{escape(path.name)}</summary><pre>{text}</pre></details>"
