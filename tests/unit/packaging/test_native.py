"""The C that the bundle carries is made without a GPU, and a machine without a compiler is told what to install."""

import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig

import pytest

from bundle import native
from bundle.errors import BuildError, MissingError

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="compiles C with gcc on Linux"
)


def test_a_machine_without_a_compiler_is_told_why_one_is_needed_and_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingError, match=r"no C compiler on this machine.*apt install gcc"):
        native.find_compiler()
    assert MissingError.exit_code == 3


def test_a_compiler_that_cc_names_wrongly_is_named(monkeypatch):
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(MissingError, match="CC=no-such-cc, which is not there"):
        native.find_compiler()


def test_a_python_without_headers_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(MissingError, match=r"no Python\.h"):
        native.python_headers()


@needs_compiler
def test_the_stub_has_the_drivers_name_and_every_function_fails(tmp_path):
    stub = tmp_path / native.STUB_NAME
    native.build_stub("gcc", "cuInit(0); x = cuMemAlloc(&p, 4); /* cuda.h */ current(1);", stub)
    library = ctypes.CDLL(str(stub))
    assert library.cuInit(0) == 999
    assert library.cuMemAlloc(0) == 999
    assert not hasattr(library, "current")
    text = subprocess.run(["readelf", "-d", stub], capture_output=True, text=True).stdout
    assert f"soname: [{native.STUB_NAME}]" in text


@needs_compiler
def test_the_system_headers_of_a_file_are_found(tmp_path):
    source = tmp_path / "file.c"
    source.write_text("#include <stdlib.h>\n")
    names = [path.name for path in native.system_headers("gcc", source, [])]
    assert "stdlib.h" in names
    assert "file.c" not in names


def test_debians_second_folder_of_headers_is_carried(monkeypatch, tmp_path):
    headers, second = tmp_path / "usr" / "python3.12", tmp_path / "usr" / "x86_64-linux-gnu" / "python3.12"
    for folder in (headers, second):
        folder.mkdir(parents=True)
        (folder / "pyconfig.h").write_text(folder.name)
    monkeypatch.setattr(sysconfig, "get_config_var", {"MULTIARCH": "x86_64-linux-gnu"}.get)
    native.carry_headers(headers, tmp_path / "include")
    found = sorted(path.relative_to(tmp_path / "include").as_posix() for path in (tmp_path / "include").rglob("*.h"))
    assert found == ["python3.12/pyconfig.h", "x86_64-linux-gnu/python3.12/pyconfig.h"]


@pytest.mark.parametrize("name", ["triton-windows", "triton"])
def test_the_manifest_names_the_triton_of_this_system(monkeypatch, tmp_path, name):
    (tmp_path / "driver.c").write_text("int one;")
    monkeypatch.setattr(native.plan, "triton_distribution", lambda: name)
    monkeypatch.setattr(native.importlib.metadata, "version", lambda asked: f"{asked} 3.7.1")
    native.write_manifest(tmp_path / "manifest.json", tmp_path / "driver.c", tmp_path / "cuda_utils.pyd")
    assert json.loads((tmp_path / "manifest.json").read_text())["triton"] == f"{name} 3.7.1"


@needs_compiler
def test_the_words_of_a_compiler_that_fails_are_in_the_error(tmp_path):
    source = tmp_path / "wrong.c"
    source.write_text("int main( {")
    with pytest.raises(BuildError, match=r"(?s)gcc .* ended with 1.*error: expected"):
        native.run(["gcc", str(source), "-o", str(tmp_path / "out")])


def test_the_manifest_names_the_source_as_triton_will_hand_it_over(tmp_path):
    driver = tmp_path / "driver.c"
    driver.write_bytes(b"int one;\r\nint two;\n")  # Triton reads it as text and writes it again
    native.write_manifest(tmp_path / "manifest.json", driver, tmp_path / "cuda_utils.so")
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert facts["source_sha256"] == hashlib.sha256(b"int one;\nint two;\n").hexdigest()
    assert facts["file"] == "cuda_utils.so"
