"""The entry of the program: argv -> exit code. Every failure becomes one message and one code here, nowhere else.

0 done, 1 crashed (report written), 2 bad configuration, 3 the machine lacks something, 130 / 143 interrupted.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sigma_app.early_stop import EarlyStop
    from sigma_app.session import Session


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Standard library and torch-free modules only, until a command needs more."""
    frozen = bool(getattr(sys, "frozen", False))
    if frozen:
        from sigma_app.frozen import prepare

        prepare()  # spawned children need it too, and never come back from freeze_support
        _watch_side_process()
    multiprocessing.freeze_support()
    if argv is None and frozen:
        from sigma_app.interpreter import LaunchDepthError, count_launch, emulate_python

        try:
            count_launch()
        except LaunchDepthError as error:
            print(f"sigma: {error}", file=sys.stderr)
            return error.exit_code
        if emulate_python():
            return 0
    return run(sys.argv[1:] if argv is None else argv)


def _watch_side_process() -> None:
    from sigma_app.side_process import is_side_process, watch_faults

    if is_side_process():
        watch_faults()


def run(argv: Sequence[str]) -> int:
    """Run the command that `argv` names and turn what it raises into an exit code."""
    from sigma_app.commands import choose
    from sigma_app.early_stop import EarlyStop
    from sigma_app.session import Session

    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a sample must not end the run on a terminal that lacks a character
    session = Session(tuple(argv))
    try:
        command, rest = choose(argv)
        return command(rest, session)
    except (Exception, KeyboardInterrupt, EarlyStop) as error:  # noqa: BLE001 - the one place where every failure ends
        return end(error, session)
    finally:
        session.close()


def open_missing_streams() -> None:
    """Where the caller has closed stdin, stdout or stderr, open nothing in their place.

    Python then has no stream to print to, and the next file of ours would get the number into which libraries print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process


def end(error: BaseException, session: Session) -> int:
    """Print what happened, write the report of a crash (its path is printed last), and return the exit code."""
    from sigma.core.errors import SigmaError
    from sigma.core.stop import EXIT_INTERRUPTED
    from sigma_app.early_stop import EarlyStop

    if isinstance(error, EarlyStop):
        return _stopped_early(error, session)
    if isinstance(error, KeyboardInterrupt):
        print("sigma: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError) and session.log is None and session.run_dir is None:  # `sigma --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    known = isinstance(error, SigmaError)
    code = error.exit_code if known else 1
    print(f"sigma: {error}" if known else f"sigma: {type(error).__name__}: {error}", file=sys.stderr)
    if code == 1:
        print(_last_words(error, session), file=sys.stderr)
    return code


def _stopped_early(stop: EarlyStop, session: Session) -> int:
    """Say that a signal ended the start-up, where nothing can be lost; the report's path is the last line."""
    when = "after the run" if session.crash_context else "before the first step; nothing is lost"
    print(f"sigma: stopped by {stop.signal_name} {when}", file=sys.stderr)
    if session.crash_report:
        try:
            print(session.write_crash_report(None, "signal", signal_name=stop.signal_name), file=sys.stderr)
        except OSError as failure:
            print(f"no report of the stop: {failure}", file=sys.stderr)
    return session.stop.exit_code


def _last_words(error: BaseException, session: Session) -> str:
    """The line that names the crash report; the traceback itself where there is no report."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    if not session.crash_report:
        return trace
    try:
        return session.write_crash_report(error)
    except OSError as failure:
        return f"{trace}\nno crash report: {failure}"


def start() -> NoReturn:
    """The whole process, also of the executable: run, keep a window that would close, exit with the code."""
    from sigma_app.console_window import claim, hold

    window_is_ours = claim()
    code = main()
    if window_is_ours:
        hold()
    sys.exit(code)


if __name__ == "__main__":
    start()
