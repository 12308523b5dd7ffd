"""Carries a plan of runs out: one by one in this process, or several at a time, each in a process of its own.

Several trainings of the benchmark's size share one large GPU: eight gave twice the runs of one (docs/optimizers.md).
The plan is made again from the log after every run, and a run is written to the log as soon as it ends.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

DONE, OUT_OF_TIME, LOST = 0, 1, 2
WHOLE = ("ok", "diverged")
"""What a run says of itself when it did all of its steps."""
LATEST = 16
"""Whole runs whose times foretell the next one's: earlier ones may have shared the device with something else."""
Row = dict[str, Any]


class Plan(Protocol):
    """What is to be run, and the log that knows what has been."""

    def missing(self) -> Iterable[Hashable]:
        """The runs that the log asks for now, in order."""
        ...

    def arguments(self, run: Any) -> Mapping[str, Any]:
        """Arguments of optim_run.execute."""
        ...

    def record(self, run: Any, row: Row) -> None:
        """Append a row to the log."""
        ...


@dataclass
class Limits:
    """Seconds from now: after `budget_s` no run should be under way, after `stop_s` none may be."""

    budget_s: float = math.inf
    stop_s: float = math.inf
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=LATEST))
    started: float = field(default_factory=time.monotonic)

    def room(self) -> bool:
        """Whether one more run would end in time if it took as long as the longest of the latest ones."""
        return time.monotonic() - self.started + max(self.latest, default=0.0) <= min(self.budget_s, self.stop_s)

    def ended(self, row: Row, since: float) -> None:
        """A run has given its row; when it did all of its steps, its time foretells others."""
        if row["status"] in WHOLE:
            self.latest.append(time.monotonic() - since)

    def left(self) -> float | None:
        """Seconds until the hard end, None without one."""
        return None if math.isinf(self.stop_s) else max(0.0, self.started + self.stop_s - time.monotonic())


def one_by_one(plan: Plan, limits: Limits) -> int:
    """Carry the plan out in this process; DONE or OUT_OF_TIME."""
    while (run := next(iter(plan.missing()), None)) is not None:
        if not limits.room():
            return OUT_OF_TIME
        from optim_run import execute

        before = time.monotonic()
        row = execute(**plan.arguments(run))
        limits.ended(row, before)
        plan.record(run, row)
    return DONE


def serve(pipe: Connection, threads: int) -> None:
    """A worker: takes arguments from the pipe and gives rows back, until the other end is gone."""
    import gc

    import torch
    from optim_run import execute

    torch.set_num_threads(min(torch.get_num_threads(), threads))
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(execute(**arguments))
        # What a finished run still holds is missing to the ones beside it.
        gc.collect()
        torch.cuda.empty_cache()


class Worker:
    """A process that carries out one run after the other. It keeps the batches of its last seed."""

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, threads))
        self._process.start()
        theirs.close()
        self.run: Hashable | None = None
        self.since = 0.0

    def take(self, run: Hashable, arguments: Mapping[str, Any]) -> None:
        """Begin a run."""
        self.run, self.since = run, time.monotonic()
        with suppress(OSError):  # it has died meanwhile: `row` will say so
            self.pipe.send(dict(arguments))

    def row(self) -> Row | None:
        """Wait for the row of the run; None when the process has died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def exit_code(self) -> int | None:
        """Of a process that has died; negative when a signal did it."""
        self._process.join(5.0)
        return self._process.exitcode

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


class Pool:
    """At most `jobs` runs at a time.

    A run whose worker dies, or that finds no memory beside others, is lost: it gets no row, because that says nothing
    about its optimizer, and is not tried again before the next start. Its worker is not replaced, which leaves more
    memory to the others.
    """

    def __init__(self, plan: Plan, jobs: int, limits: Limits) -> None:
        self._plan, self._limits = plan, limits
        self._alone, self._jobs = jobs == 1, jobs
        self._threads = max(1, (os.cpu_count() or 1) // jobs)
        self._workers: list[Worker] = []
        self._lost: set[Hashable] = set()
        self._late = False

    def carry_out(self) -> int:
        """DONE, OUT_OF_TIME, or LOST when a run was lost; no process is left behind."""
        try:
            while busy := self._hand_out():
                ready = wait([worker.pipe for worker in busy], self._limits.left())
                if not ready:
                    print(f"stopped; abandoned: {', '.join(str(worker.run) for worker in busy)}", file=sys.stderr)
                    self._late = True
                    break
                for worker in busy:
                    if worker.pipe in ready:
                        self._collect(worker)
        finally:
            for worker in self._workers:
                worker.end()
        return LOST if self._lost else OUT_OF_TIME if self._late else DONE

    def _hand_out(self) -> list[Worker]:
        """Start what the log asks for while there is room; the workers that are busy now."""
        while len(busy := [worker for worker in self._workers if worker.run is not None]) < self._jobs:
            taken = {worker.run for worker in busy} | self._lost
            run = next((run for run in self._plan.missing() if run not in taken), None)
            if run is None:
                break
            if not self._limits.room():
                self._late = True
                break
            idle = next((worker for worker in self._workers if worker.run is None), None) or self._hire()
            idle.take(run, self._plan.arguments(run))
        return busy

    def _hire(self) -> Worker:
        self._workers.append(Worker(self._threads))
        return self._workers[-1]

    def _collect(self, worker: Worker) -> None:
        run, row = worker.run, worker.row()
        worker.run = None
        if row is None:
            self._lose(run, f"its process died with exit code {worker.exit_code()}")
            self._dismiss(worker)
        elif no_memory(row["status"]) and not self._alone:
            self._lose(run, row["status"])
            self._dismiss(worker)
        else:
            self._plan.record(run, row)
            self._limits.ended(row, worker.since)
            if row["status"] not in WHOLE:  # an error of the device stays with the process
                self._dismiss(worker)

    def _lose(self, run: Hashable | None, why: str) -> None:
        self._lost.add(run)
        self._jobs -= 1
        print(f"lost: {run}: {why}; start again, with fewer --jobs if memory is short", file=sys.stderr, flush=True)

    def _dismiss(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.end()


def no_memory(status: str) -> bool:
    """Whether a status is the error of a device without memory."""
    return "out of memory" in status.lower() or "ALLOC_FAILED" in status
