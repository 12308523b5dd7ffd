"""The executable as people get it: built, copied elsewhere, started with nothing on PATH and a HOME that takes no file.

Builds once (minutes), and a second time from another folder to compare every file.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from sigma_app.selftest.runs import TINY_MODEL

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and tools")
MOST_MIB = 1.35 * 1024
ARGS = f"""\
# a tiny model: 20 steps
--device cpu
--steps 20
--save-interval 5
--seq-len 256
--batch-size 32
--micro-batch-size 32
{TINY_MODEL}"""


def build(root: Path, dist: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Build with this Python when it has PyInstaller, else with the `.venv` that build.py sets up."""
    python = ["--python", sys.executable] if importlib.util.find_spec("PyInstaller") else []
    command = [sys.executable, str(root / "packaging" / "build.py"), "--cpu", "--dist", str(dist), *python]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600", **variables}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build leaves."""
    folder = tmp_path_factory.mktemp("build") / "dist"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def bundle(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program's folder under another name."""
    folder = tmp_path_factory.mktemp("elsewhere") / "a copy, moved é"
    shutil.copytree(dist / "sigma", folder, symlinks=True)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Nothing on PATH, and a HOME in which nothing can be created, not even by root."""
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o500)
    return {
        "PATH": "",
        "HOME": "/proc" if sys.platform == "linux" and os.geteuid() == 0 else str(home),
        "LANG": "C.UTF-8",
    }


def program(folder: Path, name: str = "sigma") -> Path:
    return folder / (f"{name}.exe" if os.name == "nt" else name)


def start(
    folder: Path, environment: dict[str, str], *argv: str, limit_s: int = 900
) -> subprocess.CompletedProcess[str]:
    command = [program(folder), *argv]
    return subprocess.run(
        command, cwd=folder.anchor, env=environment, capture_output=True, encoding="utf-8", timeout=limit_s
    )


def test_the_selftest_passes_in_a_copied_folder(bundle: Path, bare: dict[str, str]):
    done = start(bundle, bare, "--selftest")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    skipped = {line.split("  ")[1].strip() for line in done.stdout.splitlines() if line.startswith("skip")}
    assert skipped <= {"kernel on the GPU"}


@POSIX
def test_twenty_steps_survive_a_kill_and_a_finished_run_says_so(bundle: Path, bare: dict[str, str]):
    (bundle / "train_sigma_args.txt").write_text(ARGS)
    run = bundle / "runs" / "sigma_main"
    with subprocess.Popen(
        [program(bundle)], cwd="/", env=bare, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as first:
        deadline = time.monotonic() + 300
        while not list(run.glob("checkpoints/*/COMMIT")):
            assert first.poll() is None, first.stdout.read().decode()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    second = start(bundle, bare)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "continues after step " in second.stdout
    assert "finished after step 20" in second.stdout
    assert (run / "checkpoints" / "step-000000020" / "COMMIT").is_file()
    third = start(bundle, bare)
    assert (third.returncode, "this run is finished (step 20)" in third.stdout) == (0, True)


def test_a_wrong_line_in_the_args_file_ends_with_2_and_names_it(bundle: Path, bare: dict[str, str], tmp_path: Path):
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("--device cpu\n--stepz 3\n")
    done = start(bundle, bare, "train", f"@{wrong}")
    assert done.returncode == 2
    assert "wrong.txt:2: --stepz" in done.stderr


def test_the_first_line_comes_within_half_a_second(bundle: Path, bare: dict[str, str]):
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        assert start(bundle, bare, "--version").returncode == 0
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.5


def test_the_worker_is_small_and_isolated(bundle: Path, bare: dict[str, str], tmp_path: Path):
    worker = program(bundle, "sigma-worker")
    assert worker.stat().st_size < 10 << 20
    (tmp_path / "intruder.py").write_text("print('imported')")
    code = "import sys, fractions; print(sys.flags.isolated, fractions.Fraction(1, 3)); import intruder"
    command = [worker, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={**bare, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["1 1/3"]
    assert "No module named 'intruder'" in done.stderr


def test_it_weighs_what_it_may_and_the_report_adds_up(dist: Path):
    report = json.loads((dist / "build_report.json").read_text())
    assert sum(report["components"].values()) == report["bytes"]
    if report["flavour"].endswith("-cpu"):
        assert report["bytes"] / 2**20 <= MOST_MIB


def test_it_carries_notices_and_a_bill_of_materials(dist: Path):
    folder = dist / "sigma"
    bill = json.loads((folder / "sbom.cdx.json").read_text())
    names = {one["name"].lower() for one in bill["components"]}
    assert {"torch", "triton", "transformers", "tokenizers", "python"} <= names
    assert not {"pytest", "pyinstaller", "ruff", "wandb"} & names
    for name in ("torch", "triton", "numpy", "python", "pyinstaller"):
        assert any(any(path.iterdir()) for path in (folder / "licenses").glob(f"{name}-*"))
    assert (folder / "LICENSE").is_file()
    assert (folder / "NOTICE").is_file()


@POSIX
def test_the_archive_unpacks_to_the_folder_and_the_checksums_hold(dist: Path, tmp_path: Path):
    archives = [path for path in (dist / "archives").glob("*.tar.gz") if "source-patch" not in path.name]
    assert all(path.stat().st_size < 1.9e9 for path in archives)
    for path in archives:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="tar")
    for folder in (dist / "archives", tmp_path / "sigma"):
        assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder).returncode == 0
    assert start(tmp_path / "sigma", {"PATH": ""}, "--version").returncode == 0


@POSIX
def test_the_source_patch_updates_an_older_folder(dist: Path, bare: dict[str, str], tmp_path: Path):
    folder = tmp_path / "sigma"
    shutil.copytree(dist / "sigma", folder, symlinks=True)
    current = start(folder, bare, "--version").stdout
    version = folder / "_internal" / "sigma" / "core" / "version.py"
    version.write_text('VERSION = "0.0.1-older"\n')
    assert start(folder, bare, "--version").stdout == "sigma 0.0.1-older\n"
    (patch,) = (dist / "archives").glob("*source-patch*")
    with tarfile.open(patch) as archive:
        assert all(name.endswith(".py") for name in archive.getnames())
        archive.extractall(tmp_path, filter="tar")
    assert start(folder, bare, "--version").stdout == current


def test_a_machine_without_a_compiler_is_told_so_and_keeps_its_build(dist: Path):
    before = (dist / "sigma" / "SHA256SUMS").read_bytes()
    done = build(ROOT, dist, PATH="", CC="")
    assert done.returncode == 3
    assert "no C compiler on this machine" in done.stderr
    assert (dist / "sigma" / "SHA256SUMS").read_bytes() == before


def test_the_same_sources_in_another_folder_give_the_same_files(dist: Path, tmp_path: Path):
    clone = tmp_path / "another place" / "clone"
    kept = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, clone, ignore=kept)
    done = build(clone, tmp_path / "dist")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sums = [(folder / "sigma" / "SHA256SUMS").read_text().splitlines() for folder in (dist, tmp_path / "dist")]
    assert set(sums[0]) ^ set(sums[1]) == set()
    archives = [(folder / "archives" / "SHA256SUMS").read_text() for folder in (dist, tmp_path / "dist")]
    assert archives[0] == archives[1]
