"""The finished folder: bytecode that a source patch invalidates, the same dates everywhere, and a log's end."""

import os
import stat
import subprocess
import sys

import pytest

from bundle import freeze, plan
from bundle.errors import BuildError, MissingError


@pytest.fixture
def internal(tmp_path):
    for package in plan.SOURCE_FIRST:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("value = 1\n")
    return tmp_path


def value_of(folder, package):
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import {package}; print({package}.value)"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True).stdout.strip()


def test_a_patched_source_is_run_although_bytecode_lies_beside_it(internal):
    freeze.precompile(internal)
    source = internal / "sigma" / "__init__.py"
    stamp = source.stat()
    source.write_text("value = 2\n")
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # an archive may carry any date
    assert value_of(internal, "sigma") == "2"


def test_bytecode_is_the_same_wherever_and_whenever_it_is_made(internal, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for package in plan.SOURCE_FIRST:
        (other / package).mkdir()
        (other / package / "__init__.py").write_text("value = 1\n")
        os.utime(other / package / "__init__.py", (5, 5))
    freeze.precompile(internal)
    freeze.precompile(other)
    found = [next((folder / "sigma" / "__pycache__").iterdir()).read_bytes() for folder in (internal, other)]
    assert found[0] == found[1]


def test_a_source_that_does_not_compile_ends_the_build(internal):
    (internal / "sigma" / "wrong.py").write_text("def (:\n")
    with pytest.raises(BuildError, match="does not compile"):
        freeze.precompile(internal)


def test_pyinstallers_last_words_are_in_the_error(tmp_path, monkeypatch):
    def fail(command, stdout, **_):
        stdout.write(b"a long way\nImportError: no module named sigma\n")
        return 1

    monkeypatch.setattr(freeze.subprocess, "call", fail)
    with pytest.raises(BuildError, match=r"(?s)PyInstaller ended with 1.*no module named sigma"):
        freeze.freeze(tmp_path / "sigma.spec", tmp_path, 0)


def test_every_file_gets_the_same_date_and_plain_permissions(tmp_path):
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "a" / "file").write_text("")
    (tmp_path / "a" / "program").touch(mode=0o700)
    (tmp_path / "link").symlink_to("/nowhere")
    freeze.set_times(tmp_path, 1_700_000_000)
    assert {path.stat().st_mtime for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "file")} == {1_700_000_000}
    modes = [stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) for name in (".", "file", "program")]
    assert modes == [0o755, 0o644, 0o755]


def test_a_machine_without_strip_is_told_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "libtriton.so").write_bytes(b"")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingError, match="install binutils"):
        freeze.strip_libtriton(tmp_path)
