"""Runs the gates and prints one line for each."""

from __future__ import annotations

import time

from sigma.core.redact import redact_text
from sigma_app.selftest import contents, kernels, processes, runs
from sigma_app.selftest.gate import Gate, NotHereError
from sigma_app.session import Session

GATES: tuple[Gate, ...] = (*contents.GATES, *processes.GATES, *kernels.GATES, *runs.GATES)


def run_gates(session: Session) -> int:
    """Run every gate; 0 when none is shut, 1 otherwise. Changes nothing outside temporary folders."""
    shut = [gate.name for gate in GATES if not passes(gate, session)]
    session.say(f"selftest failed: {', '.join(shut)}" if shut else f"selftest passed: {len(GATES)} gates")
    return 1 if shut else 0


def passes(gate: Gate, session: Session) -> bool:
    """Run one gate and say how it ended."""
    begin = time.perf_counter()
    try:
        status, text = "ok", gate.check()
    except NotHereError as reason:
        status, text = "skip", str(reason)
    except Exception as error:  # noqa: BLE001 - a gate may fail in any way; that is what it is for
        status, text = "FAIL", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begin
    session.say(f"{status:<4}  {gate.name:<22}  {seconds:6.2f} s  {redact_text(' '.join(text.split()))}")
    return status != "FAIL"
