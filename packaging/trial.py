"""Builds the executable on a machine with a GPU and no network, and measures it where no compiler is on PATH.

    python3 packaging/trial.py [--wheels .wheels] [--minutes 9.3]

Needs a Python with torch. `packaging/trial_wheels.py` fills the folder with what else a build needs, and with another
Triton, which takes the place of the built one in a copy of the bundle. Every stage has its own limit, and the next one
runs whatever happened. `$OUT` (else build/trial-out) gets executable.log, executable.json and executable.tar.gz.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from build import MOST_MIB
from bundle import checksums
from trial_start import Start, environment

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 40
WARM_STARTS = 3
SWAPPED_TRITON = "triton-*.tar.xz"
_CARRY = "import sys; from pathlib import Path; from bundle import native; native.carry(Path(sys.argv[1]))"
_PREFLIGHT = """
import importlib.metadata, pathlib, sys, tempfile
from bundle import native, notices, plan
needed, root = plan.needed_distributions(), pathlib.Path(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    notices.write_licences(pathlib.Path(folder), needed, root, with_tinycc=True)
    notices.bill_of_materials(needed, version="0", epoch=0, with_tinycc=True)
    native.carry(pathlib.Path(folder) / "carried")
found = {name: importlib.metadata.version(name) for name in needed if name in ("torch", "triton", "transformers")}
print(len(needed), "distributions with licences, C module and TinyCC made;", found)
"""


class StageError(Exception):
    """A stage cannot go on; the next ones do."""


class Trial:
    """The folders, the time that is left, and what was found so far."""

    def __init__(self, wheels: Path, work: Path, out: Path, seconds: float) -> None:
        self.wheels, self.work, self.out = wheels, work, out
        self.end = time.monotonic() + seconds
        self.limit_s = 0.0
        self.found: dict[str, Any] = {}
        self.cuda = False
        self.folder = work / "dist" / "sigma"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        out.mkdir(parents=True, exist_ok=True)
        self.log = (out / "executable.log").open("w", encoding="utf-8")

    @property
    def python(self) -> Path:
        """The Python that builds: the machine's packages, and the carried wheels before them."""
        return self.work / "venv" / "bin" / "python"

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()

    def stage(self, name: str, limit_s: float, work: Callable[[Trial], Any]) -> bool:
        """Run one stage; whether it ended well."""
        left = self.end - time.monotonic()
        self.limit_s = min(limit_s, left)
        self.say(f"== {name} ({left:.0f} s left)")
        if left < 5:
            self.found[name] = {"error": "no time left"}
            return False
        begin, error = time.monotonic(), None
        try:
            self.found[name] = {"result": work(self)}
        except Exception as failure:  # noqa: BLE001 - the next stage runs whatever happened to this one
            error = f"{type(failure).__name__}: {failure}"
            self.found[name] = {"error": error}
        seconds = self.found[name]["seconds"] = round(time.monotonic() - begin, 1)
        self.say(f"-- {name}: {error or json.dumps(self.found[name]['result'])} ({seconds} s)")
        self.write()
        return error is None

    def write(self) -> None:
        """What is known so far, should the machine end the trial."""
        (self.out / "executable.json").write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def run(self, *command: Any, env: Mapping[str, str] | None = None) -> str:
        """The output of a command, which is also logged. Raises StageError when it fails or outlasts the stage."""
        words = [str(word) for word in command]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
            env=build_environment() if env is None else dict(env), errors="replace",
        ) as process:  # fmt: skip
            try:
                output = process.communicate(timeout=self.limit_s)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output = process.communicate()[0]
                self.say(output[-6000:])
                raise StageError(f"{words[0]} ran longer than {self.limit_s:.0f} s") from None
        self.say(output[-12000:].rstrip())
        if process.returncode != 0:
            raise StageError(f"{' '.join(words[:3])} ended with {process.returncode}")
        return output


def build_environment() -> dict[str, str]:
    """The machine's own variables, without what would lead Python or Triton elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON_"))}


def machine(trial: Trial) -> None:
    """What is there before anything is installed."""
    trial.run(
        "sh",
        "-c",
        "uname -a; nproc; df -h / /tmp; nvidia-smi; gcc --version; strip --version | head -1; ldd --version | head -1",
    )
    trial.say(f"{sys.executable} {sys.version} base {sys.base_prefix}")
    trial.say(f"LD_LIBRARY_PATH={os.environ.get('LD_LIBRARY_PATH')} CC={os.environ.get('CC')}")
    trial.run(sys.executable, "-m", "pip", "list", "--format=freeze")


def install(trial: Trial) -> str:
    """A virtual environment over the machine's packages, with the carried wheels and this project."""
    trial.run(sys.executable, "-m", "venv", "--without-pip", trial.work / "venv")
    site = next((trial.work / "venv" / "lib").glob("python*/site-packages"))
    below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # the prefix too: PyInstaller keeps a library in the folder of its package only below the prefixes that `site` knows
    lines = [
        f"import site; site.addsitedir({path!r}); site.PREFIXES.append({str(Path(path).parents[2])!r})"
        for path in below
    ]
    (site / "machine.pth").write_text("\n".join(lines) + "\n")
    pip = [trial.python, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    trial.run(*pip, *sorted(trial.wheels.glob("*.whl")))
    trial.run(*pip, "--no-build-isolation", "--editable", ROOT)
    packaging = {**build_environment(), "PYTHONPATH": str(ROOT / "packaging")}
    cuda = trial.run(trial.python, "-c", "import torch; print(torch.version.cuda or '')")
    trial.cuda = cuda.strip() != ""
    return trial.run(trial.python, "-c", _PREFLIGHT, ROOT, env=packaging).strip()


def build(trial: Trial) -> dict[str, Any]:
    """packaging/build.py; afterwards its folder is known, also when a gate or the size stopped it."""
    kind = [] if trial.cuda else ["--cpu"]
    unfinished = ROOT / "build" / "exe"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        trial.run(
            trial.python, "packaging/build.py", *kind, "--no-archives", "--python", trial.python,
            "--dist", trial.work / "dist",
        )  # fmt: skip
        return json.loads((trial.work / "dist" / "build_report.json").read_text())["seconds"]
    finally:
        if not trial.folder.exists() and (unfinished / "new" / "sigma").exists():
            trial.folder = unfinished / "new" / "sigma"
        for log in unfinished.glob("work/pyinstaller.log"):
            trial.say(log.read_text(errors="replace")[-4000:])


def sizes(trial: Trial) -> dict[str, Any]:
    """MiB of each component, and the largest files."""
    parts = checksums.sizes(trial.folder, "_internal")
    for name, size in parts.items():
        trial.say(f"{size / 2**20:9.1f} MiB  {name}")
    files = sorted(checksums.regular_files(trial.folder), key=lambda path: -path.stat().st_size)
    for path in files[:LARGEST]:
        trial.say(f"{path.stat().st_size / 2**20:9.1f} MiB  {path.relative_to(trial.folder)}")
    return {"MiB": round(sum(parts.values()) / 2**20), "bar": MOST_MIB["cuda" if trial.cuda else "cpu"]}


def copy(trial: Trial) -> str:
    """The folder as somebody gets it: copied, under another name."""
    target = trial.work / "a copy, moved é" / "sigma"
    shutil.copytree(trial.folder, target, symlinks=True)
    trial.folder = target
    return str(target)


def first_line(trial: Trial) -> dict[str, float]:
    """Seconds until `sigma --version` has ended, the best and the worst of five."""
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        trial.run(trial.folder / "sigma", "--version", env=environment(trial.work / "home"))
        seconds.append(round(time.monotonic() - begin, 3))
    return {"best": min(seconds), "worst": max(seconds), "bar": 0.5}


def steps(trial: Trial, folder: Path, name: str) -> dict[str, Any]:
    """A start with empty caches up to its first step, then with warm ones: some up to there, one through all steps."""
    home = trial.work / f"home {name}"

    def start(kind: str) -> Start:
        return Start(folder, home, trial.work / f"{name}_{kind}", cuda=trial.cuda)

    starts = [start("cold"), *(start(f"warm_{number}") for number in range(WARM_STARTS)), start("warm")]
    found: dict[str, Any] = {"cold": starts[0].until_first_step(trial.limit_s / 3)}
    try:
        again = [one.until_first_step(trial.limit_s / 6)["first_step_s"] for one in starts[1:-1]]
        found |= {"warm first steps": again, "warm": starts[-1].to_the_end(trial.limit_s / 2)}
    finally:
        for one in starts:
            trial.say("\n".join(one.lines[-40:]))
    return {**found, "bars": {"first_line_s": 0.5, "cold first_step_s": 30, "warm first_step_s": 8}}


def built_triton(trial: Trial) -> dict[str, Any]:
    """The bundle as it was built."""
    return steps(trial, trial.folder, "built")


def swap_triton(trial: Trial) -> str:
    """A copy of the bundle in which the carried Triton stands in the place of the built one, its C module too."""
    carried = next(trial.wheels.glob(SWAPPED_TRITON))
    other = trial.work / "other"
    with tarfile.open(carried) as archive:
        archive.extractall(other, filter="tar")
    swapped = trial.work / "swapped" / "sigma"
    shutil.copytree(trial.folder, swapped, symlinks=True)
    internal = swapped / "_internal"
    for old in (internal / "triton", internal / "native", *internal.glob("triton-*.dist-info")):
        shutil.rmtree(old)
    paths = os.pathsep.join([str(other), str(ROOT / "packaging")])
    trial.run(trial.python, "-c", _CARRY, trial.work / "carried", env={**build_environment(), "PYTHONPATH": paths})
    shutil.copytree(trial.work / "carried" / "native", internal / "native")
    for new in other.iterdir():
        shutil.copytree(new, internal / new.name, symlinks=True)
    return f"{carried.name}: {(internal / 'native' / 'manifest.json').read_text()}"


def other_triton(trial: Trial) -> dict[str, Any]:
    """Row 3: the first launch of the carried Triton with no compiler on PATH."""
    return steps(trial, trial.work / "swapped" / "sigma", "swapped")


def selftest(trial: Trial) -> str:
    """The gates of the copied folder. (That of the other Triton lacks Blackwell's assembler.)"""
    output = trial.run(trial.folder / "sigma", "--selftest", env=environment(trial.work / "home built"))
    return output.strip().splitlines()[-1]


STAGES: tuple[tuple[str, float, Callable[[Trial], Any]], ...] = (
    ("machine", 40, machine),
    ("install", 60, install),
    ("build", 350, build),
    ("sizes", 20, sizes),
    ("copy", 60, copy),
    ("first line", 20, first_line),
    ("built Triton", 180, built_triton),
    ("swap Triton", 60, swap_triton),
    ("other Triton", 150, other_triton),
    ("selftest", 120, selftest),
)


def pack(trial: Trial) -> None:
    """What the runs wrote, without checkpoints."""
    with tarfile.open(trial.out / "executable.tar.gz", "w:gz") as archive:
        for pattern in (
            "*_cold/*.json*",
            "*_warm/*.json*",
            "*_cold/errors/*",
            "*_warm/errors/*",
            "dist/build_report.json",
        ):
            for path in sorted(trial.work.glob(pattern)):
                archive.add(path, str(path.relative_to(trial.work)))


def main(argv: list[str]) -> int:
    """0 when every stage ended well."""
    parser = argparse.ArgumentParser(prog="trial")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "trial")
    parser.add_argument("--minutes", type=float, default=9.3)
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    out = Path(os.environ.get("OUT") or work.with_name(f"{work.name}-out"))
    trial = Trial(arguments.wheels.resolve(), work, out, arguments.minutes * 60)
    failed = [name for name, limit_s, stage in STAGES if not trial.stage(name, limit_s, stage)]
    pack(trial)
    trial.say(f"failed: {', '.join(failed)}" if failed else "every stage ended well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
