"""What the program knows about itself while it starts; the crash handler reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sigma.config.parse import Parsed, parse
from sigma.config.presets import resolve_parsed
from sigma.config.resolved import continue_run
from sigma.core import paths
from sigma.core.errors import MissingRequirementError
from sigma.core.redact import redact_argv
from sigma.core.stop import StopRequest
from sigma.core.version import VERSION
from sigma_app import bootstrap, nvidia
from sigma_app.console_window import close_saves
from sigma_app.logfile import LogFile, log_dir, log_dirs
from sigma_app.nvidia import Nvidia

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
    stop: StopRequest = field(default_factory=StopRequest, repr=False)
    """The wish to end; the trainer's handlers fill it, and before them those of the start-up."""
    nvidia: Nvidia | None = field(default=None, repr=False)
    """What the driver says, once it was asked."""
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def say(self, *lines: str) -> None:
        """Print for the user."""
        for line in lines:
            print(line, flush=True)

    def warn(self, *lines: str) -> None:
        """Print a warning for the user."""
        for line in lines:
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def start_log(self) -> None:
        """Copy everything printed from here on to a file; from here on, closing the window waits for `close`."""
        self._open.enter_context(close_saves(self.stop))
        first_line = " ".join(["SIGMA", VERSION, *redact_argv(self.argv)])
        for folder in log_dirs():
            try:
                self.log = LogFile(first_line, folder)
                return
            except OSError as error:
                self.warn(f"no log file in {folder} ({error.strerror})")
        self.warn("messages are on the screen only")

    def close(self) -> None:
        """End the copy; nothing is left to be saved."""
        if self.log is not None:
            self.log.close()
        self._open.close()

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
                self.args_file, lines = bootstrap.write_args_template()
                self.say(*lines)
        parsed = continue_run(parse(argv, args_file=None if named else self.args_file, data_dir=paths.data_dir()))
        self.crash_report = parsed.config.run.crash_report_enabled
        self.warn(*parsed.warnings)
        return parsed

    def find_gpu(self) -> Nvidia:
        """What the driver says; asked once."""
        self.nvidia = self.nvidia or nvidia.find()
        return self.nvidia

    def resolve(self, parsed: Parsed) -> Parsed:
        """Every `auto` decided for this machine; imports torch only if a GPU could be used.

        Raises MissingRequirementError, with the reason, when a GPU is demanded and cannot be used.
        """
        if parsed.config.run.device == "cpu":
            return resolve_parsed(parsed, None)
        memory_gb = cuda_memory_gb()
        if memory_gb is not None:
            return resolve_parsed(parsed, memory_gb)
        reason = nvidia.why_unusable(self.find_gpu(), torch_cuda())
        try:
            resolved = resolve_parsed(parsed, None)
        except MissingRequirementError as error:
            raise MissingRequirementError(f"{error} ({reason})") from None
        if self.find_gpu().driver:
            self.warn(f"the GPU cannot be used: {reason}")
        return resolved

    def report_dirs(self) -> list[Path]:
        """Where a report goes while no run folder takes it, in this order."""
        known = bootstrap.known_errors_dir()
        beside = [self.args_file.parent / bootstrap.ERRORS_DIR] if self.args_file else []
        return [*([known] if known else []), *beside, log_dir() / bootstrap.ERRORS_DIR]

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
        path = write_crash_report(
            error,
            run_dir=self.run_dir,
            kind=kind or (kind_of(error, where) if error else "signal"),
            context=context,
            signal_name=signal_name,
            other_dirs=self.report_dirs(),
        )
        if self.log is not None:  # a start, not a self-test
            bootstrap.copy_to_known_folder(path)
        return f"{'crash report' if error else 'report of the stop'}: {path}"


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for; None for the CPU."""
    import torch

    return torch.version.cuda


def cuda_memory_gb() -> float | None:
    """Memory of the first CUDA device in GiB, None when torch cannot use one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory / 2**30
