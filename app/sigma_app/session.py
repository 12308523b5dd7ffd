"""What the program knows about itself while it starts; the crash handler reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sigma.config.parse import Parsed, parse
from sigma.config.presets import resolve_parsed
from sigma.config.resolved import continue_run
from sigma.core import paths
from sigma.core.redact import redact_argv
from sigma.core.version import VERSION
from sigma_app import bootstrap
from sigma_app.logfile import LogFile, log_dir

if TYPE_CHECKING:
    from sigma.train.crash import CrashContext, CrashKind


@dataclass
class Session:
    """One start of the program."""

    argv: Sequence[str]
    args_file: Path | None = None
    run_dir: Path | None = None
    """Output folder, once the configuration is known."""
    crash_report: bool = True
    crash_context: Callable[[], CrashContext] | None = field(default=None, repr=False)
    """What the trainer knows, once there is one."""
    log: LogFile | None = field(default=None, repr=False)

    def say(self, *lines: str) -> None:
        """Print for the user."""
        for line in lines:
            print(line, flush=True)

    def warn(self, *lines: str) -> None:
        """Print a warning for the user."""
        for line in lines:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def start_log(self) -> None:
        """Copy everything printed from here on to a file."""
        try:
            self.log = LogFile(" ".join(["SIGMA", VERSION, *redact_argv(self.argv)]))
        except OSError as error:
            self.warn(f"no log file in {log_dir()} ({error.strerror}); messages are on the screen only")

    def close(self) -> None:
        """End the copy."""
        if self.log is not None:
            self.log.close()

    def prepare(self) -> None:
        """Caches and environment of the libraries; before anything imports torch."""
        self.warn(*bootstrap.prepare_environment(os.environ))

    def read_configuration(self, argv: Sequence[str], *, create_args_file: bool) -> Parsed:
        """The configuration of a start. Raises ConfigError.

        The default args file is read unless the command line names one (`@FILE`). A run that is started again
        continues with the values in its output folder.
        """
        named = [word[1:] for word in argv if word.startswith("@")]
        if named:
            self.args_file = Path(os.path.abspath(named[0]))
        else:
            self.args_file = bootstrap.find_args_file()
            if self.args_file is None and create_args_file:
                self.args_file, message = bootstrap.write_args_template()
                self.say(message)
        parsed = continue_run(parse(argv, args_file=None if named else self.args_file, data_dir=paths.data_dir()))
        self.crash_report = parsed.config.run.crash_report_enabled
        self.warn(*parsed.warnings)
        return parsed

    def resolve(self, parsed: Parsed) -> Parsed:
        """Every `auto` decided for this machine; imports torch only if a GPU could be used."""
        memory_gb = None if parsed.config.run.device == "cpu" else cuda_memory_gb()
        return resolve_parsed(parsed, memory_gb)

    def write_crash_report(
        self,
        error: BaseException | None,
        kind: CrashKind | None = None,
        *,
        signal_name: str | None = None,
        thread: str | None = None,
    ) -> str:
        """Write a report where it is allowed to be; returns the line that says where. `error` is None for a signal."""
        from sigma.train.crash import CrashContext, kind_of, write_crash_report

        where: CrashKind = "step" if self.crash_context else "startup"
        if type(error).__name__ == "DataThreadError":  # by name: importing its module needs torch
            where = "data_thread"
        context = self.crash_context() if self.crash_context else CrashContext()
        context.argv, context.thread = self.argv, thread
        beside = [self.args_file.parent / "errors"] if self.args_file else []
        path = write_crash_report(
            error,
            run_dir=self.run_dir,
            kind=kind or (kind_of(error, where) if error else "signal"),
            context=context,
            signal_name=signal_name,
            other_dirs=[*beside, log_dir() / "errors"],
        )
        return f"{'crash report' if error else 'report of the stop'}: {path}"


def cuda_memory_gb() -> float | None:
    """Memory of the first CUDA device in GiB, None when torch cannot use one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30
