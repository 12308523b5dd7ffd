"""One training from a resolved configuration to an exit code, with the hooks that report what fails on the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from sigma.config.data import DataSection
from sigma.config.parse import Parsed
from sigma.core.errors import ConfigError
from sigma.core.lock import RunLock
from sigma.core.malloc import keep_freed_memory
from sigma.train.crash import CrashKind
from sigma.train.crash_hooks import crash_hooks
from sigma_app.awake import keep_awake
from sigma_app.collector import no_collections
from sigma_app.console import Console, closing_lines
from sigma_app.last_run import told_at_start
from sigma_app.session import Session
from sigma_kernels.triton_cache import apply_cache_folder


def run_training(resolved: Parsed, session: Session) -> int:
    """Build the trainer, run it, and say how it ended. Exceptions go on to the caller, who writes their report.

    Raises RunLockedError when another process trains in the output folder.
    """
    keep_freed_memory()
    run_dir = resolved.config.run.output_dir
    make_run_dir(run_dir)
    with RunLock(run_dir) as lock:  # before anything heavy is loaded
        session.run_dir = run_dir
        _tell_last_run(session, run_dir, lock.took_over_pid)
        return _run_locked(resolved, session, lock)


def _tell_last_run(session: Session, run_dir: Path, dead_pid: int | None) -> None:
    """Say how the last start ended, if not well; a report that cannot be written does not stop this start."""
    try:
        session.say(*told_at_start(run_dir, dead_pid, session.report_dirs(), write=session.crash_report))
    except OSError as error:
        session.warn(f"the last start did not end well, and its report cannot be written: {error}")


@contextmanager
def unpacking(data: DataSection) -> Iterator[None]:
    """Inside, texts, tokenizer and the model of languages are unpacked, which takes a core but hardly the interpreter.

    All of them are cached; what fails here fails again, and is reported, where the result is needed.
    """
    from sigma.data.quality.gate import wanted_languages
    from sigma.data.tokenizer import load_tokenizer

    with ThreadPoolExecutor(2, "sigma-unpack") as pool:
        pool.submit(load_tokenizer, data.tokenizer)
        if data.data_backend != "bundled":
            pool.submit(wanted_languages, data.languages)
        yield


def _run_locked(resolved: Parsed, session: Session, lock: RunLock) -> int:
    with no_collections(), unpacking(resolved.config.data):
        from sigma.build import build_trainer

    apply_cache_folder(os.environ)

    def report(error: BaseException, kind: CrashKind, thread: str | None) -> None:
        if session.crash_report:
            print(session.write_crash_report(error, kind, thread=thread), file=sys.stderr, flush=True)

    with crash_hooks(report), keep_awake(session.say), Console() as console:
        trainer = build_trainer(resolved.config, resolved.origins, listeners=[console], stop=session.stop, lock=lock)
        session.crash_context = trainer.crash_context
        outcome = trainer.run()
    session.say(*closing_lines(outcome))
    if outcome.signal_name is not None and session.crash_report:
        session.say(session.write_crash_report(None, "signal", signal_name=outcome.signal_name))
    return outcome.exit_code


def make_run_dir(folder: Path) -> None:
    """Create the output folder. Raises ConfigError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output-dir {folder}: {error.strerror}; give another folder") from None
