"""What the Makefile calls: set up `.venv` once, then run, test, check, measure or build with it.

    python packaging/make.py {run,test,test-slow,test-gpu,check,bench,exe} [arguments for the program behind it]

Standard library only, because it starts on a machine that has nothing but Python and pip.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONSTRAINTS = ROOT / "packaging" / "constraints.txt"
STAMP = VENV / "installed.txt"
OLDEST_PYTHON = (3, 11)
# The CUDA and the CPU build carry the same public version, so one pin serves both.
TORCH = "torch==2.13.0"

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright",),
    ("importlinter",),
    ("codespell_lib",),
)


class SetupError(Exception):
    """The command cannot start; the message says what to do."""


def venv_python() -> Path:
    """The interpreter inside `.venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def fingerprint() -> str:
    """Changes when an installed `.venv` no longer fits: other requirements, other pins, or another folder."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def installed_extras() -> set[str] | None:
    """The extras in `.venv`, or None when it is missing, half-made or out of date."""
    if not venv_python().exists() or not STAMP.exists():
        return None
    stamped, *extras = STAMP.read_text(encoding="utf-8").split() or [""]
    return set(extras) if stamped == fingerprint() else None


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver; nothing is loaded."""
    windows_driver = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll"
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists() or windows_driver.exists()


def install(extras: set[str]) -> None:
    """Make `.venv` fit: torch first and alone, so that no other requirement can choose its version."""
    if not has_nvidia_driver():
        print("no NVIDIA driver: the program will run on the CPU; see the README for the small CPU build of torch")
    if not pip_works():
        make_venv()
    STAMP.unlink(missing_ok=True)
    pip_install(TORCH, "hatchling")
    project = f".[{','.join(sorted(extras))}]" if extras else "."
    # hatchling is in the environment already, at its pinned version, so the build fetches nothing
    pip_install("--no-build-isolation", "--editable", project)
    warn_of_cpu_torch()
    STAMP.write_text("\n".join([fingerprint(), *sorted(extras)]) + "\n", encoding="utf-8")


def pip_works() -> bool:
    """Whether `.venv` has a pip that starts; an interrupted set-up leaves one without."""
    if not venv_python().exists():
        return False
    return subprocess.run([venv_python(), "-m", "pip", "--version"], capture_output=True).returncode == 0


def make_venv() -> None:
    """Create `.venv` anew with the running Python.

    Raises:
        SetupError: this Python cannot make virtual environments.
    """
    print(f"creating {VENV.name} with Python {sys.version.split()[0]}", flush=True)
    if subprocess.run([sys.executable, "-m", "venv", "--clear", VENV]).returncode != 0:
        raise SetupError("this Python has no complete venv module; on Debian and Ubuntu: apt install python3-venv")


def pip_install(*what: str) -> None:
    """Install under the constraints.

    Raises:
        SetupError: pip failed; its own words stand above.
    """
    command = [venv_python(), "-m", "pip", "install", "--disable-pip-version-check", "-c", CONSTRAINTS, *what]
    print("pip install", *what, flush=True)
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise SetupError(f"pip could not install {what[-1]}; read its message above, then run the same command again")


def warn_of_cpu_torch() -> None:
    """Say so when a machine with an NVIDIA driver got a torch that cannot use it (the default on Windows)."""
    if not has_nvidia_driver():
        return
    probe = "import sys, torch; sys.exit(torch.version.cuda is None)"
    if subprocess.run([venv_python(), "-c", probe]).returncode != 0:
        print(f"warning: this torch has no CUDA; to use the GPU, install the CUDA build of {TORCH} into .venv (README)")


def ensure(*extras: str) -> None:
    """Install what is missing; does nothing, within milliseconds, when `.venv` fits already."""
    present = installed_extras()
    if present is None or not set(extras) <= present:
        install(set(extras) | (present or set()))


def one_thread() -> dict[str, str]:
    """The environment for tests: as many processes as cores, so one torch thread each."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def become(*command: str) -> int:
    """Hand this process over to the program, so that signals and the exit code are its own."""
    argv = [str(venv_python()), *command]
    if os.name == "nt":  # os.execv on Windows returns to the shell at once
        return wait_for(subprocess.Popen(argv, cwd=ROOT))
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execv(argv[0], argv)


def wait_for(program: subprocess.Popen[bytes]) -> int:
    """Wait through Ctrl-C: the program gets it as well, and may have a checkpoint to write."""
    while True:
        try:
            return program.wait()
        except KeyboardInterrupt:
            continue


def run(args: Sequence[str]) -> int:
    """Train with train_sigma_args.txt, or whatever the arguments say."""
    ensure()
    return become("-m", "sigma_app", *args)


def pytest(*args: str) -> int:
    """Run pytest in `.venv`."""
    ensure("dev")
    return subprocess.call([venv_python(), "-m", "pytest", *args], cwd=ROOT, env=one_thread())


def test(args: Sequence[str]) -> int:
    """All tests but the gpu and the slow ones; one file stays in one process, so that its fixtures are made once."""
    workers = min(os.cpu_count() or 1, 8)
    spread = ("-n", str(workers), "--dist", "loadfile") if workers > 1 else ()
    return pytest("-q", *spread, *args)


def test_slow(args: Sequence[str]) -> int:
    """The tests that take minutes; the end says which were skipped, and what they need (wine, for example)."""
    return pytest("-m", "slow and not gpu", "-rs", *args)


def test_gpu(args: Sequence[str]) -> int:
    """The tests that need a CUDA device; their result is appended to kernels/bench/gpu_tests.jsonl."""
    ensure("dev")
    return become("kernels/bench/gpu_tests.py", *args)


def check(args: Sequence[str]) -> int:
    """Lint, format, types, floors, spelling: all of them, even after one failed. Takes no arguments."""
    if args:
        raise SetupError(f"check takes no arguments, got {' '.join(args)}")
    ensure("dev")
    failed = []
    for tool in CHECKS:
        name = " ".join(tool)
        print(f"== {name}", flush=True)
        if subprocess.call([venv_python(), *check_command(tool)], cwd=ROOT) != 0:
            failed.append(name)
    print(f"check failed: {', '.join(failed)}" if failed else "check passed", flush=True)
    return 1 if failed else 0


def check_command(tool: Sequence[str]) -> list[str]:
    """Arguments for Python that start a tool as a module: the scripts in `.venv` break when the folder moves."""
    if tool[0] == "importlinter":  # has no __main__
        return ["-c", "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"]
    if tool[0] == "pyright":  # looks for packages in the `python` of PATH otherwise
        return ["-m", *tool, "--pythonpath", str(venv_python())]
    return ["-m", *tool]


def bench(args: Sequence[str]) -> int:
    """Measure the kernels; appends to kernels/bench/results.csv."""
    ensure("dev")
    return become("kernels/bench/run.py", *args)


def exe(args: Sequence[str]) -> int:
    """Build the executable, dist/sigma; build.py sets up what it needs."""
    return wait_for(subprocess.Popen([sys.executable, ROOT / "packaging" / "build.py", *args], cwd=ROOT))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "test": test,
    "test-slow": test_slow,
    "test-gpu": test_gpu,
    "check": check,
    "bench": bench,
    "exe": exe,
}


def main(argv: Sequence[str]) -> int:
    """Returns the exit code of the program behind the command; 2: no such command, 3: the machine lacks something."""
    if sys.version_info < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, version[:2])) for version in (OLDEST_PYTHON, sys.version_info))
        print(f"SIGMA needs Python {wanted} or newer, this is {found}; for example: make run PYTHON=python3.12")
        return 3
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python packaging/make.py {{{','.join(COMMANDS)}}} [arguments]", file=sys.stderr)
        return 2
    try:
        return COMMANDS[argv[0]](argv[1:])
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
