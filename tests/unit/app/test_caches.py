"""A folder for every cache, on every machine; what the environment looks like when torch is imported."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from sigma.core import paths
from sigma.core.version import VERSION
from sigma_app import bootstrap
from sigma_app.caches import cache_root, prepare_caches
from sigma_kernels.triton_cache import VARIABLE, apply_cache_folder


def test_users_own_variables_are_kept_and_caches_are_keyed_by_version():
    environment = {"HF_HOME": "/mine", "TOKENIZERS_PARALLELISM": "true"}
    assert bootstrap.prepare_environment(environment) == []
    assert environment["HF_HOME"] == "/mine"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"
    assert environment["TRITON_BACKENDS_IN_TREE"] == "1"
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR")
    for name in names:
        folder = Path(environment[name])
        assert folder.is_dir()
        assert folder.parent == paths.cache_dir()
        assert folder.parent.name == VERSION


def test_generated_modules_are_imported_from_the_cache_folder(home: Path):
    environment: dict[str, str] = {}
    before = list(sys.path)
    bootstrap.prepare_environment(environment)
    bootstrap.prepare_environment({})
    folder = Path(environment["UNSLOTH_COMPILE_LOCATION"])
    assert sys.path == [*before, str(folder.parent)], "once, and behind everything else"
    (folder / "made.py").write_text("VALUE = 5")
    module = importlib.import_module(f"{folder.name}.made")
    assert module.VALUE == 5
    assert list(home.iterdir()) == []
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_caches_of_a_closed_home_go_beside_the_executable_else_to_a_private_folder(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder would be")
    monkeypatch.setattr(paths, "program_dir", lambda: tmp_path / "Sigma")
    (tmp_path / "Sigma").mkdir()
    root, (line,) = cache_root()
    assert root == tmp_path / "Sigma" / "cache" / VERSION
    assert line.endswith(f"(Not a directory); they are in {root}")
    monkeypatch.setattr(paths, "program_dir", lambda: None)
    root, (line,) = cache_root()
    assert line == f"caches cannot be kept in {paths.cache_dir()} (Not a directory); every start compiles again"
    assert root.stat().st_mode & 0o077 == 0, "others must not put code there"
    root.rmdir()


def test_accent_in_the_cache_folder_keeps_triton_out_of_the_environment_on_windows(tmp_path, monkeypatch):
    os.environ["XDG_CACHE_HOME"] = str(tmp_path / "Zoé")
    environment: dict[str, str] = {}
    prepare_caches(environment)
    assert environment["TRITON_CACHE_DIR"] == str(paths.cache_dir() / "triton"), "elsewhere the variable works"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(paths, "cache_dir", lambda: tmp_path / "Zoé" / "c")
    environment = {}
    prepare_caches(environment)
    assert "TRITON_CACHE_DIR" not in environment
    assert environment[VARIABLE] == str(tmp_path / "Zoé" / "c" / "triton")


def test_triton_takes_the_folder_from_the_process(tmp_path):
    triton = pytest.importorskip("triton")
    before = triton.knobs.cache.__dict__.get("dir")
    folder = str(tmp_path / "Zoé")
    try:
        assert apply_cache_folder({}) is False
        assert apply_cache_folder({VARIABLE: folder}) is True
        assert triton.knobs.cache.dir == folder
        assert "TRITON_CACHE_DIR" not in os.environ
    finally:
        triton.knobs.cache.__dict__.pop("dir", None)
        if before is not None:
            triton.knobs.cache.__dict__["dir"] = before
