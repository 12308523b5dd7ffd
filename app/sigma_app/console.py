"""What a person sees of a run: lines for every row of metrics, and a progress bar on a terminal.

Fed with the rows that go to metrics.jsonl. Plain lines when the output is not a terminal, or one that
cannot redraw (TERM=dumb), or when NO_COLOR is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

Row = Mapping[str, Any]
WIDTH_WITH_BAR = 120
SAID_ELSEWHERE = ("checkpoint_deleted", "previous_process_died")
"""Events without a line: retention at work after every save; the program's first lines have told of the other."""
LAST_STEP = "all steps are done: saving, then validating on all held-out text, which can take minutes"


class Console:
    """Call it with every row; use it as a context manager, so that the terminal is left as it was."""

    def __init__(self, stream: TextIO | None = None, environment: Mapping[str, str] = os.environ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._steps = 0
        self._sample_interval: int | None = None
        """Set until the first measured speed tells when the first sample comes."""
        self._progress: Progress | None = None
        self._live: Live | None = None
        if self._stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb":
            self._start_bar()

    def _start_bar(self) -> None:
        rich = RichConsole(file=self._stream, highlight=False, markup=False)
        numbers = TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.description}", table_column=Column())
        bar = (BarColumn(),) if rich.width >= WIDTH_WITH_BAR else ()  # the numbers must not be cut for it
        self._progress = Progress(*bar, numbers, console=rich, auto_refresh=False)
        self._task = self._progress.add_task("", total=None, visible=False)
        # Redrawn with each row only: a copy of the output in a log file stays readable.
        self._live = Live(
            self._progress, console=rich, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, row: Row) -> None:
        """Show one row."""
        if row["kind"] == "startup":
            self._steps, self._sample_interval = row["steps"], row["sample_interval"]
        if row["kind"] == "train" and self._sample_interval is not None:
            self._print(first_sample_line(row, self._steps, self._sample_interval))
            self._sample_interval = None
        if row["kind"] == "train" and self._live is not None and self._progress is not None:
            self._progress.update(
                self._task, total=self._steps, completed=row["step"], description=train_text(row), visible=True
            )
            self._live.refresh()
        else:
            for line in DESCRIPTIONS[row["kind"]](row, self._steps):
                self._print(line)
        if row["kind"] == "train" and row["step"] == self._steps:
            self._print(LAST_STEP)

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(line, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def startup_lines(row: Row, steps: int) -> list[str]:
    """Where, what and how long, before the first step."""
    resumed = row.get("checkpoint_resume_step")
    lines = [
        f"device      {row['device']} ({row['device_name']}), {row['precision']}",
        f"model       {row['parameters']:,} parameters, {row['active_parameters']:,} active per token",
        f"batch       {row['batch_size']} rows of {row['seq_len']} tokens, {row['micro_batch_size']} at a time",
        *row["routing"],
    ]
    if "kernels_ahead" in row:
        ready = f"{row['kernels_ahead']} of the first step ready in {row['startup_kernels_s']:.1f} s"
        lines.append(f"kernels     {ready if row['kernels_ahead'] else 'of the first step kept from an earlier start'}")
    if resumed and resumed >= steps:
        return [*lines, f"all {steps} steps are done; the final validation is left"]
    return [
        *lines,
        f"continues after step {resumed} of {steps}" if resumed else f"starts at step 1 of {steps}",
        f"{_when('progress with the time left', row['log_interval'], steps)},"
        f" {_when('validation', row['eval_interval'], steps)}, {_when('text sample', row['sample_interval'], steps)};"
        " Ctrl+C saves and stops",
    ]


def first_sample_line(row: Row, steps: int, interval: int) -> str:
    """When the first text sample comes, from the time that the first measured steps took."""
    left = steps - row["step"]
    until = left if interval == 0 else min(left, interval - row["step"] % interval)
    wait = duration(row["eta_s"] * until / left if left else 0)
    return f"first text sample after step {row['step'] + until}, in about {wait}, in the folder samples"


def _when(what: str, interval: int, steps: int) -> str:
    return f"{what} every {interval} steps" if 0 < interval < steps else f"{what} at the end"


def train_text(row: Row) -> str:
    """The numbers of a training row, without the step."""
    parts = [f"loss {_number(row['loss'], '.4f')}", f"bpb {_number(row['train_bpb'], '.4f')}"]
    parts += [f"{row['effective_tokens_per_s']:,.0f} tok/s", f"left {duration(row['eta_s'])}"]
    if row["skipped_steps"]:
        parts.append(f"skipped {row['skipped_steps']}")
    return "  ".join(parts)


def train_lines(row: Row, steps: int) -> list[str]:
    return [f"step {row['step']}/{steps}  {train_text(row)}"]


def eval_lines(row: Row, steps: int) -> list[str]:
    line = f"validation at step {row['step']}: {_number(row['val_bpb'], '.4f')} bits per byte"
    line += f" over {row['val_bytes']:,} bytes"
    if not row.get("final"):
        return [line]
    names = {"gzip_bpb": "gzip -9", "xz_bpb": "xz -9e", "witten_bell_bpb": "Witten-Bell bigram"}
    others = ", ".join(f"{label} {row[name]:.4f}" for name, label in names.items())
    return [f"final {line}", f"for comparison: {others}"]


def sample_lines(row: Row, steps: int) -> list[str]:
    text = visible((row["prompts"][0] + row["texts"][0]).replace("\n", " "))
    return [f"sample at step {row['step']} ({row['file']}): {text[:160]}"]


def visible(text: str, keep: str = "") -> str:
    """`text` with a mark for every character that would steer the terminal, except those in `keep`."""
    return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in text)


def event_lines(row: Row, steps: int) -> list[str]:
    if row["event"] in SAID_ELSEWHERE:
        return []
    hidden = {"kind", "step", "seg", "t", "event"}
    details = ", ".join(f"{key} {value}" for key, value in row.items() if key not in hidden and value != "")
    return [f"note at step {row['step']}: {row['event'].replace('_', ' ')}{': ' if details else ''}{details}"]


DESCRIPTIONS: dict[str, Callable[[Row, int], list[str]]] = {
    "startup": startup_lines,
    "train": train_lines,
    "eval": eval_lines,
    "sample": sample_lines,
    "event": event_lines,
}


def closing_lines(outcome: Any) -> list[str]:
    """The last words of a run that ended without an error."""
    if outcome.state == "already_finished":
        return [f"{outcome.run_dir}: this run is finished (step {outcome.step}); raise --steps to continue it"]
    if outcome.state == "interrupted":
        saved = f"stopped by {outcome.signal_name} after step {outcome.step}, which is saved"
        return [f"{saved}; start again to continue from there"]
    return [f"finished after step {outcome.step}; see {outcome.run_dir / 'report.html'}"]


def duration(seconds: float) -> str:
    """`45s`, `3m12s`, `2h05m` or `3d04h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "-"
