"""The real build_exe.bat with a real Windows Python under wine, and its bundle: trains, is killed, resumes.

Fetches 200 MB once (into build/windows) and takes minutes.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slow import windows
from tests.slow.test_executable import ARGS
from tests.slow.windows import ROOT, Windows

LIMIT_S = 5400
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(LIMIT_S),
    # wine is 200 MB that most machines lack, and on Windows itself nothing has to stand in for Windows
    pytest.mark.skipif(windows.missing() != "", reason=windows.missing() or "Windows is here"),
]
ENDS = {"compile workers", "kernel on the GPU"}
"""The gates that say nothing here."""
COMPILE = """
from importlib import import_module
from sigma_app.session import Session
Session([]).prepare()
from sigma_app.selftest.kernels import FORWARD, WIDTH, cubin_bytes
kernel, torch = import_module("sigma_kernels.rms_norm.kernel"), import_module("torch")
print(cubin_bytes(kernel._rms_norm_fwd_kernel, FORWARD, 89, kernel.tile_of(WIDTH, torch.float32)))
"""
Bat = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def win() -> Iterator[Windows]:
    try:
        made = windows.make(ROOT / "build" / "windows")
    except subprocess.CalledProcessError as error:
        # without a network there is no Windows Python to test with
        pytest.skip(f"pip cannot fetch a Windows Python and its libraries: {error.stderr.strip().splitlines()[-1:]}")
    yield made
    made.end()


@pytest.fixture(scope="module")
def clone(win: Windows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in a folder with a space, an accent and brackets; the Windows Python knows it."""
    folder = tmp_path_factory.mktemp("Zoé (x86)") / "the clone"
    kept = shutil.ignore_patterns(".git", ".venv", "build", "dist", "runs", "__pycache__", ".*_cache", ".wheels")
    shutil.copytree(ROOT, folder, ignore=kept)
    words = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--editable")
    win.check(win.python, *words, windows.path(folder))
    return folder


@pytest.fixture(scope="module")
def bat(win: Windows, clone: Path) -> Bat:
    """build_exe.bat as a double-click starts it, from another folder."""

    def run(*words: str, limit_s: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        return win.run(windows.path(clone / "build_exe.bat"), *words, limit_s=limit_s, **variables)

    return run


@pytest.fixture
def own(win: Windows) -> dict[str, str]:
    """The variable that names the Python which builds."""
    return {"PYTHON": windows.path(win.python)}


def with_its_packages(win: Windows) -> tuple[str, str]:
    return ("--python", windows.path(win.python))


def test_without_a_python_it_says_how_to_get_one(bat: Bat):
    done = bat()
    assert (done.returncode, done.stdout.splitlines()[0][:23]) == (3, "error: no Python found;")


def test_a_python_on_the_path_is_found_and_wrong_arguments_are_2(bat: Bat, win: Windows):
    done = bat("--nonsense", WINEPATH=windows.path(win.python.parent))
    assert done.returncode == 2
    assert "unrecognized arguments: --nonsense" in done.stdout


def test_a_python_that_cannot_make_an_environment_is_3(bat: Bat, own: dict[str, str]):
    """The embeddable Python has no venv."""
    done = bat("--cpu", **own)
    assert done.returncode == 3
    assert "no complete venv module" in done.stdout


def test_a_torch_for_the_cpu_is_refused_unless_asked_for(bat: Bat, win: Windows, own: dict[str, str]):
    done = bat(*with_its_packages(win), **own)
    assert done.returncode == 3
    assert "this torch was built for the CPU" in done.stdout
    assert "--cpu" in done.stdout


@pytest.mark.parametrize(
    "hidden, words",
    [("Include", "no Python.h in"), ("Lib/site-packages/triton/runtime/tcc", "install triton-windows in its place")],
    ids=["headers", "tinycc"],
)
def test_what_the_machine_lacks_is_3_with_its_name(bat: Bat, win: Windows, own: dict[str, str], hidden, words):
    there = win.python.parent / hidden
    away = there.rename(there.with_name("hidden"))
    try:
        done = bat("--cpu", *with_its_packages(win), **own)
    finally:
        away.rename(there)
    assert done.returncode == 3
    assert words in done.stdout


def test_a_build_that_fails_is_1_and_leaves_the_one_before(bat: Bat, win: Windows, clone: Path, own: dict[str, str]):
    before = clone / "dist" / "sigma" / "sigma.exe"
    before.parent.mkdir(parents=True)
    before.write_text("the build before")
    spec = clone / "packaging" / "sigma.spec"
    text = spec.read_text(encoding="utf-8")
    spec.write_text("raise SystemExit('no such luck')\n")
    try:
        done = bat("--cpu", *with_its_packages(win), **own)
    finally:
        spec.write_text(text, encoding="utf-8")
    assert done.returncode == 1
    assert "error: PyInstaller ended with 1" in done.stdout
    assert before.read_text() == "the build before"
    shutil.rmtree(clone / "dist")


@pytest.fixture(scope="module")
def built(bat: Bat, win: Windows, clone: Path) -> str:
    """What a build of the CPU bundle printed."""
    done = bat("--cpu", *with_its_packages(win), PYTHON=windows.path(win.python), limit_s=LIMIT_S - 300)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def bundle(built: str, clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program's folder, under another name with a space and accents."""
    folder = tmp_path_factory.mktemp("elsewhere") / "Zoé Müller" / "a copy"
    shutil.copytree(clone / "dist" / "sigma", folder)
    (folder / "train_sigma_args.txt").write_text(ARGS, newline="\r\n")
    return folder


def test_the_selftest_of_the_build_passes_with_triton_windows(built: str):
    """Among its gates: the one backend is there, kernels become machine code, the C module comes without a compiler."""
    gates = {
        line[6:28].strip(): line[:4].strip() for line in built.splitlines() if line[:4] in ("ok  ", "skip", "FAIL")
    }
    assert {name for name, status in gates.items() if status != "ok"} <= ENDS
    assert {"triton backends", "cubins", "C module, ready-made", "C module, TinyCC", "training"} <= set(gates)
    assert "triton-windows 3." in built
    assert "Failed to find CUDA" not in built


def test_it_has_archives_that_windows_unpacks_and_checksums(built: str, clone: Path):
    names = {path.name for path in (clone / "dist" / "archives").iterdir()}
    kinds = {"sigma-0.1.0-windows-amd64-cpu.zip", "sigma-0.1.0-windows-amd64-cpu-source-patch.zip", "SHA256SUMS"}
    assert names == kinds
    for folder in (clone / "dist" / "archives", clone / "dist" / "sigma"):
        assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder).returncode == 0


def test_twenty_steps_from_the_adjacent_file_survive_a_kill(win: Windows, bundle: Path):
    run = bundle / "runs" / "sigma_main"
    with win.start(bundle / "sigma.exe") as first:
        deadline = time.monotonic() + 600
        while not list(run.glob("checkpoints/*/COMMIT")):
            assert first.poll() is None, first.stdout.read()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.kill()
    second = win.run(bundle / "sigma.exe", limit_s=900)
    assert second.returncode == 0, second.stdout[-3000:]
    assert "the last start here did not end cleanly" in second.stdout
    assert "continues after step " in second.stdout
    assert "finished after step 20" in second.stdout
    third = win.run(bundle / "sigma.exe")
    assert (third.returncode, "this run is finished (step 20)" in third.stdout) == (0, True)


def test_a_typo_in_the_adjacent_file_is_2_with_its_line(win: Windows, bundle: Path):
    file = bundle / "train_sigma_args.txt"
    text = file.read_bytes()
    file.write_text("# mine\r\n--stepz 3\r\n", newline="")
    try:
        done = win.run(bundle / "sigma.exe")
    finally:
        file.write_bytes(text)
    assert done.returncode == 2
    assert "train_sigma_args.txt:2: --stepz: unknown flag; did you mean --steps?" in done.stdout


def test_kernels_are_cached_in_a_folder_with_an_accent(win: Windows, bundle: Path, tmp_path: Path):
    """Triton reads the variable in the system's code page and takes the bytes for UTF-8."""
    home = tmp_path / "Zoé"
    home.mkdir()
    done = win.run(bundle / "sigma.exe", "-c", COMPILE, WIN_PD_OVERRIDE_LOCAL_APPDATA=windows.path(home))
    assert done.returncode == 0, done.stdout
    assert len(list(home.rglob("*.cubin"))) == 1


def test_a_cache_folder_with_an_accent_that_the_user_names_is_used(win: Windows, bundle: Path, tmp_path: Path):
    done = win.run(bundle / "sigma.exe", "-c", COMPILE, TRITON_CACHE_DIR=windows.path(tmp_path / "Zoé"))
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "Zoé").rglob("*.cubin"))) == 1
