"""Does the program do its work: a run that trains and continues, a crash that is reported, without secrets?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sigma.core import paths
from sigma.core.strict_json import load_file
from sigma.train.crash import last_metric_rows
from sigma_app.selftest.gate import CHILD_LIMIT_S, Gate, GateError, child, expect, output_of, own_folders

SECRET = "hf_NotARealTokenButShapedLikeOne"
TINY_MODEL = """\
--d-model 16
--n-layers 2
--mamba-ratio 1
--ssm-state 8
--ssm-head-dim 16
--n-heads 1
--attention-head-dim 8
--kv-latent-dim 8
--d-ff 16
--n-routed-experts 2
--moe-top-k 1
--log-interval 1
--sample-tokens 4
--eval-interval 0
--val-max-tokens 256
"""
"""The smallest model with a layer of each kind, which says all it does; the tests of whole programs take it too."""
TINY = f"""\
--device cpu
--output-dir run
--steps 100000
--save-interval 2
--tokenizer bytes
--seq-len 64
--batch-size 2
--micro-batch-size 2
{TINY_MODEL}"""
CRASH = """
import sys
from pathlib import Path
from sigma_app.session import Session
session = Session(["train", "--hf-token", sys.argv[2]], run_dir=Path(sys.argv[1]))
try:
    raise RuntimeError(f"failed with token={sys.argv[2]}")
except RuntimeError as error:
    print(session.write_crash_report(error))
"""
SEGFAULT = """
import ctypes, os
from sigma_app.session import Session
session = Session(["train"])
session.start_log()
print(session.log.path, flush=True)
ctypes.string_at(0)
"""


def training() -> str:
    """A tiny model trains, is killed after its first checkpoint, and continues behind it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tiny_args.txt").write_text(TINY, encoding="utf-8")
        run = folder / "run"
        train_until(folder, lambda: bool(list(run.glob("checkpoints/*/COMMIT"))))
        saved = max(int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/*/COMMIT"))
        reached = max(saved, last_step(run))  # rows of the killed start may be ahead of its checkpoint
        output = train_until(folder, lambda: last_step(run) > reached)
    expect(f"continues after step {saved} " in output, f"the second start did not continue after step {saved}")
    return f"killed after step {saved}, continued"


def train_until(folder: Path, condition: Callable[[], bool]) -> str:
    """Train until `condition` holds, then kill the run; what it printed. Raises GateError when it ends by itself."""
    module = [] if paths.is_frozen() else ["-m", "sigma_app"]
    command = [sys.executable, *module, "train", f"@{folder / 'tiny_args.txt'}"]
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, **own_folders(folder)},
        )
    deadline = time.monotonic() + CHILD_LIMIT_S
    try:
        while not condition():
            expect(time.monotonic() < deadline, f"no progress in {CHILD_LIMIT_S} s")
            if process.poll() is not None:
                raise GateError(
                    f"ended with {process.returncode}: {output.read_text(encoding='utf-8', errors='replace')}"
                )
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    return output.read_text(encoding="utf-8", errors="replace")


def last_step(run: Path) -> int:
    """The step of the newest row of metrics of this start."""
    return max((row["step"] for row in last_metric_rows(run / "metrics.jsonl") if row["kind"] == "train"), default=0)


def crash_report() -> str:
    """A crash leaves a report with versions and arguments, in which no secret is readable."""
    with tempfile.TemporaryDirectory() as folder:
        output_of(child(["-c", CRASH, folder, SECRET], **own_folders(Path(folder))))
        reports = list((Path(folder) / "errors").glob("crash_*.json"))
        expect(len(reports) == 1, f"{len(reports)} reports were written")
        text = reports[0].read_text(encoding="utf-8")
        report = load_file(reports[0])
    expect(SECRET not in text and "[redacted]" in text, "the secret can be read in the report")
    expect(report["exception_type"] == "RuntimeError" and report["versions"], "the report has no type or no versions")
    return "written, redacted"


def native_crash() -> str:
    """A segmentation fault leaves the Python stack in a file."""
    with tempfile.TemporaryDirectory() as folder:
        done = child(["-c", SEGFAULT], **own_folders(Path(folder)))
        expect(done.returncode != 0, "the child survived")
        if not done.stdout.strip():
            raise GateError(f"no log file: {done.stderr.strip()[-200:]}")
        faults = Path(done.stdout.splitlines()[-1].strip()).with_suffix(".faults").read_text(encoding="utf-8")
    expect("string_at" in faults, "the stack is not in the fault file")
    return "stack written"


GATES = [
    Gate("training", training),
    Gate("crash report", crash_report),
    Gate("segmentation fault", native_crash),
]
