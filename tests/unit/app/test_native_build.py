"""Triton's C module comes from the bundle, else from TinyCC, else from the user's compiler; each choice is said."""

import _ctypes
import hashlib
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from sigma_app import native_build
from sigma_app.native_build import NoCompilerError, Order, build_extension

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
LIBRARY = "libsome.so.1"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux paths and compilers")


class Bundle:
    """A bundle with a module made from `source`; compilers that write what they are into the file they make."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.native = folder, folder / "bundle" / "native"
        self.work = folder / "triton"
        self.work.mkdir()
        self.source = self.work / "cuda_utils.c"
        self.source.write_text("int x;\n")
        (self.work / LIBRARY).touch()
        self.native.mkdir(parents=True)
        # a real shared library, because the program loads it before it trusts it
        shutil.copyfile(_ctypes.__file__, self.native / "made.so")
        self.describe()

    def describe(self, **changes: str) -> None:
        digest = hashlib.sha256(b"int x;\n").hexdigest()
        facts = {"module": "cuda_utils", "file": "made.so", "source_sha256": digest, "triton": "3", "python": SUFFIX}
        (self.native / "manifest.json").write_text(json.dumps(facts | changes))

    def compiler(self, path: Path, code: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        script = '#!/bin/sh\nfor last; do :; done\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done\n'
        path.write_text(f'{script}echo boom >&2\n[ {code} = 0 ] && echo {path.name} > "$out"\nexit {code}\n')
        path.chmod(0o755)
        return path

    def build(self, name: str = "cuda_utils") -> Path:
        return Path(build_extension(name, str(self.source), str(self.work), [str(self.work)], [], [LIBRARY]))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    made = Bundle(tmp_path)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / "bundle"), raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    return made


def test_the_ready_made_module_is_taken_for_the_same_source(bundle: Bundle, capsys: pytest.CaptureFixture[str]):
    assert bundle.build() == bundle.native / "made.so"
    assert capsys.readouterr().err == "triton: cuda_utils ready-made, from the bundle\n"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"source_sha256": "0"}, "another source"),
        ({"python": ".cpython-399.so"}, "another Python"),
        ({"module": "other"}, "the bundle has other"),
        ({"file": "gone.so"}, "gone.so"),
    ],
    ids=["source", "python", "module", "missing"],
)
def test_a_module_that_does_not_fit_is_replaced_by_tinycc_and_the_reason_is_said(
    bundle: Bundle, changes: dict[str, str], reason: str, capsys: pytest.CaptureFixture[str]
):
    bundle.compiler(bundle.native / "tcc" / "bin" / "tcc")
    bundle.describe(**changes)
    assert bundle.build().read_text() == "tcc\n"
    said = capsys.readouterr().err
    assert "compiled with the bundled TinyCC" in said
    assert reason in said


@pytest.mark.parametrize("text", [b'{"module": "cuda_', b"\xff\xfe", b"[]"], ids=["torn", "no-text", "no-object"])
def test_a_damaged_manifest_leaves_it_to_tinycc(bundle: Bundle, capsys: pytest.CaptureFixture[str], text: bytes):
    bundle.compiler(bundle.native / "tcc" / "bin" / "tcc")
    (bundle.native / "manifest.json").write_bytes(text)
    assert bundle.build().read_text() == "tcc\n"
    assert "manifest.json is damaged" in capsys.readouterr().err


def test_headers_that_pythons_own_name_relative_to_the_folder_above_are_found(bundle: Bundle):
    order = Order("cuda_utils", bundle.source, bundle.work, [], ["triton"], [])
    assert order.headers()[:2] == ["triton", str(bundle.work)]
    python, above = order.headers()[2:]
    assert (Path(python) / "..").resolve() == Path(above).resolve()


def test_a_module_that_this_machine_cannot_load_is_not_used(bundle: Bundle, capsys: pytest.CaptureFixture[str]):
    bundle.compiler(bundle.native / "tcc" / "bin" / "tcc")
    (bundle.native / "made.so").write_text("no library")
    assert bundle.build().read_text() == "tcc\n"
    assert "ready made: " in capsys.readouterr().err


def test_the_users_compiler_is_the_last_resort(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bundle.describe(source_sha256="0")
    bundle.compiler(bundle.native / "tcc" / "bin" / "tcc", code=1)
    own = bundle.compiler(bundle.folder / "bin" / "mycc")
    monkeypatch.setenv("CC", str(own))
    assert bundle.build().read_text() == "mycc\n"
    said = capsys.readouterr().err
    assert f"compiled with {own}" in said
    assert "with tinycc: tcc: boom" in said


def test_without_any_way_the_error_has_every_reason_and_what_to_do(bundle: Bundle):
    bundle.describe(source_sha256="0")
    with pytest.raises(
        NoCompilerError, match=r"another source.*with tinycc.*no gcc, cc or clang.*Install gcc"
    ) as caught:
        bundle.build()
    assert caught.value.exit_code == 3


def test_a_missing_driver_library_is_named(bundle: Bundle):
    bundle.describe(source_sha256="0")
    bundle.compiler(bundle.native / "tcc" / "bin" / "tcc")
    (bundle.work / LIBRARY).unlink()
    with pytest.raises(NoCompilerError, match=f"{LIBRARY} is in none of"):
        bundle.build()


def test_compilers_do_not_get_the_bundles_library_path(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    bundle.describe(source_sha256="0")
    own = bundle.folder / "cc"
    own.write_text(f'#!/bin/sh\necho "$LD_LIBRARY_PATH" > {bundle.work}/seen\nexit 1\n')
    own.chmod(0o755)
    monkeypatch.setenv("CC", str(own))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/bundle")
    os.putenv("LD_LIBRARY_PATH", "/bundle")  # os.environ is a plain copy in these tests
    try:
        with pytest.raises(NoCompilerError):
            bundle.build()
    finally:
        os.unsetenv("LD_LIBRARY_PATH")
    assert (bundle.work / "seen").read_text() == "\n"
    assert os.environ["LD_LIBRARY_PATH"] == "/bundle"


def test_from_source_there_is_no_bundle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(sys, "_MEIPASS", raising=False)
    assert not native_build.native_folder().exists()
