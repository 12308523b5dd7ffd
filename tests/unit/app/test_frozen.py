"""In the executable, importing triton sets the hook that replaces its compiler; nothing is imported for it before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_app import frozen
from sigma_app.doctor import compiler

KNOBS = "class build:\n    impl = None\n"


@pytest.fixture
def triton(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name with the module that is watched; `sys.meta_path` and the modules are restored."""
    package = home / "triton"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "knobs.py").write_text(KNOBS)
    monkeypatch.setattr(sys, "path", [str(home), *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    yield package
    for name in ("triton", "triton.knobs"):
        sys.modules.pop(name, None)


def test_importing_the_knobs_sets_the_hook(triton: Path):
    frozen.prepare({})
    from triton import knobs

    from sigma_app.native_build import build_extension

    assert knobs.build.impl is build_extension
    assert knobs.__spec__.loader.get_source("triton.knobs") == KNOBS  # inspect and the like still work


def test_a_hook_that_is_set_already_stays(triton: Path):
    (triton / "knobs.py").write_text("class build:\n    impl = 'own'\n")
    frozen.prepare({})
    from triton import knobs

    assert knobs.build.impl == "own"


def test_preparing_twice_adds_one_finder_and_the_import_takes_it_away(triton: Path):
    before = len(sys.meta_path)
    frozen.prepare({})
    frozen.prepare({})
    assert len(sys.meta_path) == before + 1
    __import__("triton.knobs")
    assert len(sys.meta_path) == before


def test_the_environment_names_the_backend_unless_the_user_did(triton: Path):
    environment = {"TRITON_DEFAULT_BACKEND": "other"}
    frozen.prepare(environment)
    assert environment == {"TRITON_DEFAULT_BACKEND": "other", "TRITON_BACKENDS_IN_TREE": "1"}


def test_on_windows_triton_finds_its_own_cuda_files_and_no_old_toolkit(triton: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "_MEIPASS", str(triton / "bundle"), raising=False)
    environment = {"CUDA_PATH": "C:\\CUDA\\v11.8"}
    frozen.prepare(environment)
    assert environment["CUDA_PATH"] == str(triton / "bundle" / "triton" / "backends" / "nvidia")


def test_on_windows_a_cache_folder_with_accents_reaches_triton_in_every_process(
    triton: Path, monkeypatch: pytest.MonkeyPatch
):
    (triton / "knobs.py").write_text(f"{KNOBS}class cache:\n    dir = None\npropagate_env = True\n")
    monkeypatch.setattr(sys, "platform", "win32")
    os.environ["TRITON_CACHE_DIR"] = "C:\\Users\\Zoé\\triton"
    frozen.prepare(os.environ)
    assert "TRITON_CACHE_DIR" not in os.environ
    from triton import knobs

    assert knobs.cache.dir == "C:\\Users\\Zoé\\triton"


def test_nothing_heavy_is_imported():
    code = "import sys; from sigma_app.frozen import prepare; prepare(); print({'torch', 'triton'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_doctor_asks_for_no_compiler(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert compiler().status == "OK"
    monkeypatch.delattr(sys, "frozen")
    assert compiler().status == "WARN"
