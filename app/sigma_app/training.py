"""One training from a resolved configuration to an exit code, with the hooks that report what fails on the way."""

from __future__ import annotations

import sys
from pathlib import Path

from sigma.config.parse import Parsed
from sigma.core.errors import ConfigError
from sigma.core.malloc import keep_freed_memory
from sigma.train.crash import CrashKind
from sigma.train.crash_hooks import crash_hooks
from sigma_app.console import Console, closing_lines
from sigma_app.session import Session


def run_training(resolved: Parsed, session: Session) -> int:
    """Build the trainer, run it, and say how it ended. Exceptions go on to the caller, who writes their report."""
    from sigma.build import build_trainer

    keep_freed_memory()
    make_run_dir(resolved.config.run.output_dir)
    session.run_dir = resolved.config.run.output_dir

    def report(error: BaseException, kind: CrashKind, thread: str | None) -> None:
        if session.crash_report:
            print(session.write_crash_report(error, kind, thread=thread), file=sys.stderr, flush=True)

    with crash_hooks(report), Console() as console:
        trainer = build_trainer(resolved.config, resolved.origins, listeners=[console])
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
