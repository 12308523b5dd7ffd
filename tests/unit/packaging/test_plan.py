"""What the bundle takes: exactly what the project requires, and no file that a library reads of itself is left out."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest

from bundle import plan


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs empty distributions: name -> (requirements, import names)."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    def install(name, requires=(), modules=()):
        folder = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *(f"Requires-Dist: {one}" for one in requires)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        (folder / "top_level.txt").write_text("\n".join(modules or [name]))
        return folder

    return install


def test_requirements_are_followed_to_any_depth_and_through_circles(installed):
    installed("project", ["one>=1"])
    installed("one", ["Two_B"])
    installed("two-b", ["one"])
    installed("stranger")
    assert plan.needed_distributions("project") == ["one", "two-b"]


def test_extras_and_markers_count_only_where_they_are_asked_for(installed):
    installed("project", ["one[fast]", "never; python_version < '3'", "optional; extra == 'all'"])
    installed("one", ["quick; extra == 'fast'", "slow; extra == 'slow'"])
    installed("quick")
    assert plan.needed_distributions("project") == ["one", "quick"]


def test_a_requirement_that_is_not_installed_is_an_error(installed):
    installed("project", ["one"])
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        plan.needed_distributions("project")


def test_modules_of_other_distributions_are_foreign_but_not_those_that_a_needed_one_shares(installed):
    installed("one", modules=["one", "shared"])
    installed("tool", modules=["tool", "shared", "setuptools"])
    assert plan.foreign_modules(["one"]) == ["tool"]


def test_direct_modules_are_those_that_the_project_names_itself(installed):
    installed("project", ["FastThing", "one", "never; python_version < '3'", "optional; extra == 'all'"])
    installed("fastthing", ["deep"], modules=["fastthing", "_fastthing_tools"])
    for name in ("one", "deep", "never", "optional"):
        installed(name)
    assert plan.direct_modules("project") == ["fastthing", "one"]


@pytest.mark.parametrize(
    "name, foreign",
    [
        ("scipy-1.18.1.dist-info/METADATA", True),
        ("huggingface_hub-2.4.0.dist-info/METADATA", False),
        ("sigma_trainer-0.1.0.dist-info\\METADATA", False),
        ("scipy/__init__.py", False),
    ],
)
def test_descriptions_of_distributions_that_are_not_in_the_bundle_are_left_out(name, foreign):
    assert plan.is_foreign_metadata(name, ["huggingface-hub"]) is foreign


def test_what_setuptools_brings_along_is_not_foreign_when_it_is_installed_too(installed):
    installed("zipp")
    installed("jaraco-text", modules=["jaraco"])
    assert plan.foreign_modules([]) == []


@pytest.mark.parametrize("system, name", [("win32", "triton-windows"), ("linux", "triton")])
def test_triton_has_another_name_on_windows(monkeypatch, system, name):
    monkeypatch.setattr(sys, "platform", system)
    assert plan.triton_distribution() == name


@pytest.mark.parametrize(
    "name",
    [
        "torch/bin/torch_shm_manager",
        "torch/testing/__init__.py",
        "torch/lib/libtorch_cpu.so",
        "triton/backends/nvidia/bin/ptxas",
        "triton/backends/nvidia/bin/ptxas-blackwell",
        "triton/backends/nvidia/include/cuda.h",
        "triton/backends/nvidia/lib/libdevice.10.bc",
        "triton/_C/libtriton.so",
        "triton/runtime/tcc/lib/libtcc1.a",
        "triton/backends/nvidia/lib/x64/cuda.lib",
        "torch-2.13.0.dist-info/METADATA",
        "pyarrow/_parquet.cpython-311-x86_64-linux-gnu.so",
        "pyarrow/libarrow.so.2600",
        "pyarrow/libarrow_substrait.so.2600",
        "sigma/data/corpus/README.md",
        "transformers/models/__init__.py",
        "transformers/models/auto/modeling_auto.py",
        "transformers/models/encoder_decoder/configuration_encoder_decoder.py",
    ],
)
def test_what_runs_is_kept(name):
    assert not plan.is_unused_file(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch/bin/protoc",
        "torch/include/ATen/ATen.h",
        "torch/lib/libtorchbind_test.so",
        "torch/lib/libc10.a",
        "triton/_C/libproton.so",
        "triton/FileCheck",
        "triton/backends/amd/lib/ocml.bc",
        "triton\\backends\\amd\\compiler.py",
        "triton/backends/nvidia/bin/nvdisasm",
        "triton/backends/nvidia/lib/cupti/libcupti.so",
        "triton/backends/nvidia/include/cuda_fp16.h",
        "numpy/_core/tests/test_umath.py",
        "numpy-2.dist-info/RECORD",
        "numpy-2.dist-info/direct_url.json",
        "libcudart.so",
        "pyarrow/include/arrow/api.h",
        "pyarrow/tests/test_parquet.py",
        "pyarrow/_flight.cpython-311-x86_64-linux-gnu.so",
        "pyarrow/libarrow_flight.so.2600",
        "libarrow_python_flight.so.2600",
        "pyarrow\\arrow_s3.dll",
        "transformers/models/auto_other/modeling_auto_other.py",
        "transformers\\models\\bert\\__init__.py",
    ],
)
def test_what_never_runs_is_left_out(name):
    assert plan.is_unused_file(name)


def test_no_source_that_torch_or_triton_hashes_is_left_out():
    """torch_key and triton_key open every module that a package lists; one missing file ends every compilation."""
    for package, parts in (("torch", ["."]), ("triton", ["compiler", "language", "runtime", "backends/nvidia"])):
        root = find(package)
        names = [path.relative_to(root.parent).as_posix() for part in parts for path in (root / part).rglob("*.py")]
        kept_out = [n for n in names if plan.is_unused_file(n) and not n.startswith(("torch/test/", "torch/include/"))]
        assert len(names) > 20
        assert kept_out == []


def find(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    return Path(spec.origin).parent


def test_the_standard_library_is_whole_without_what_pulls_in_foreign_licences_or_windows():
    modules = set(plan.stdlib_modules())
    assert {"json", "json.decoder", "decimal", "sqlite3.dbapi2", "xml.etree.ElementTree", "encodings.utf_8"} <= modules
    assert (
        not {"readline", "_gdbm", "_dbm", "tkinter", "_tkinter", "nis", "test", "distutils", "unittest.test"} & modules
    )


def test_models_of_others_are_left_out_but_not_what_transformers_needs_to_list_them():
    unused = plan.unused_models()
    assert "transformers.models.bert" in unused
    assert not {f"transformers.models.{name}" for name in plan.KEPT_MODELS} & set(unused)
    assert all(plan.is_unused_file(name.replace(".", "/") + "/__init__.py") for name in unused)
