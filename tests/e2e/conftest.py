"""The whole program in processes that can be killed, and its trainer in this one.

Importing torch takes seconds, so one process imports everything once and forks a child for every start (POSIX). The
child runs `sigma_app.__main__.main` as the command line does. `train_real` starts a fresh interpreter instead.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240
TINY = """
--device cpu
--preset demo
--d-model 32
--n-layers 4
--d-ff 32
--n-routed-experts 4
--moe-top-k 2
--n-heads 2
--attention-head-dim 16
--kv-latent-dim 16
--ssm-state 16
--ssm-head-dim 16
--ssm-expand 2
--mimo-rank 2
--ssm-chunk 16
--seq-len 32
--batch-size 8
--micro-batch-size 4
--tokenizer bytes
--synthetic-ratio 0.5
--log-interval 1
--eval-interval 0
--sample-interval 0
--sample-tokens 4
--val-max-tokens 256
"""

FORKER = """
import json, os, sys, traceback
import torch, sigma.build, sigma_app.training, sigma_app.__main__ as program
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1); os.dup2(log, 2); os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = 99
        try:
            exec(job["patch"], {})
            code = program.main(job["argv"])
            sys.stdout.flush(); sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Child:
    """One start of the program."""

    def __init__(self, pid, wait, log):
        self.pid, self._wait, self.log, self.code = pid, wait, log, None

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):  # it has ended, and its parent has taken note
            self.send(signal.SIGKILL)
        return self.wait()

    def wait(self):
        """Exit code; -9 after SIGKILL."""
        if self.code is None:
            self.code = self._wait()
        return self.code

    def alive(self):
        """Whether the process still runs (a zombie does not)."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def wait_for(self, condition, pause_s=0.002):
        """Poll until `condition()` is true; fails with the output when the time or the child ends first."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if not self.alive():
                assert condition(), f"the program ended:\n{self.output()[-3000:]}"
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(pause_s)

    def output(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_line(self):
        return self.output().rstrip().splitlines()[-1]


class Program:
    """Starts the program; `patch` is code that the child runs first, to inject a fault without a product hook."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = dict(os.environ, OMP_NUM_THREADS="1")
        self.environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "app"))
        for name in ("STATE", "CACHE", "DATA", "CONFIG"):
            self.environment[f"XDG_{name}_HOME"] = str(folder / name.lower())
        self.environment["TMPDIR"] = str(folder)
        self.args_file = folder / "tiny_args.txt"
        self.args_file.write_text(TINY)
        self._forker, self._starts, self._child = None, 0, None

    def train(self, run_dir, *flags, patch=""):
        """Start `sigma train` with the tiny model in `run_dir`, in a forked child; returns at once."""
        argv, log = self._prepare(run_dir, flags)
        self._child = self._fork(argv, log, patch)
        return self._child

    def train_real(self, run_dir, *flags):
        """The same in a fresh interpreter, as a user starts it."""
        argv, log = self._prepare(run_dir, flags)
        with log.open("wb") as out:
            command = [sys.executable, "-m", "sigma_app", *argv]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, cwd=self.folder)
        self._child = Child(process.pid, lambda: process.wait(DEADLINE_S), log)
        return self._child

    def start(self, *argv, patch=""):
        """Start the program with this command line and no more, in a forked child."""
        log = self._next_log()
        self._child = self._fork(list(argv), log, patch)
        return self._child

    def run_real(self, command, **options):
        """A process of its own, to its end; its environment is that of the other starts."""
        options = {"cwd": self.folder, "env": self.environment, "timeout": DEADLINE_S, **options}
        return subprocess.run(command, capture_output=True, encoding="utf-8", **options)

    def _next_log(self):
        assert self._child is None or self._child.code is not None, "one child at a time"
        self._starts += 1
        log = self.folder / f"output-{self._starts}.txt"
        log.touch()
        return log

    def _prepare(self, run_dir, flags):
        return ["train", f"@{self.args_file}", "--output-dir", str(run_dir), *flags], self._next_log()

    def _fork(self, argv, log, patch):
        if self._forker is None:
            self._forker = subprocess.Popen(
                [sys.executable, "-c", FORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                cwd=self.folder,
            )
        job = {"argv": argv, "log": str(log), "patch": patch}
        self._forker.stdin.write(json.dumps(job) + "\n")
        self._forker.stdin.flush()
        return Child(int(self._forker.stdout.readline()), lambda: int(self._forker.stdout.readline()), log)

    def rows(self, run_dir):
        """The readable rows of metrics.jsonl."""
        path = run_dir / "metrics.jsonl"
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def end_child(self):
        """Kill what a failed test left running."""
        if self._child is not None and self._child.code is None:
            self._child.kill()

    def close(self):
        self.end_child()
        if self._forker is not None:
            self._forker.stdin.close()
            self._forker.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("starts children by fork")
    started = Program(tmp_path_factory.mktemp("program"))
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test(request):
    yield
    if "program" in request.fixturenames:
        request.getfixturevalue("program").end_child()


@pytest.fixture
def in_this_process(monkeypatch):
    """Training here instead of in a child: validated on little text; torch's settings and the counters are put back."""
    import torch  # not above: most tests here start a process and need none of it

    import sigma.build
    from sigma_kernels import counters
    from tests.e2e.tiny_trainer import ShortValidation

    monkeypatch.setattr(sigma.build, "Validation", ShortValidation)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)
    counters.load({})


@pytest.fixture
def make(tmp_path, in_this_process):
    """Build a tiny trainer in a folder of this name; keyword arguments are flags of any section."""
    from tests.e2e.tiny_trainer import build

    built = []

    def make_one(folder="run", stop=None, **flags):
        built.append(build(tmp_path / folder, stop, **flags))
        return built[-1]

    yield make_one
    for trainer in built:
        trainer.close()
