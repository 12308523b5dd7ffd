"""Findings, each with a remedy where something is wrong; FAIL exactly when training could not start."""

import os
from collections import namedtuple

import psutil
import pytest

from sigma.core import paths
from sigma.data.record import DataError
from sigma_app import doctor
from sigma_app.__main__ import main
from sigma_app.doctor import Finding, format_findings
from sigma_app.nvidia import Gpu, Nvidia


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.nvidia, "find", lambda: Nvidia(problem="no NVIDIA driver is installed"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_machine_without_gpu_can_train(home, no_gpu, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "training can start"
    for name in ("Python", "torch", "driver", "CUDA", "Triton", "compiler", "output folder", "disk", "memory", "data"):
        assert name in out
    assert "network" in out
    assert list(home.iterdir()) == [], "an examination leaves nothing behind"


@pytest.mark.parametrize("flags", [["--require-cuda"], ["--device", "cuda"]], ids=["require-cuda", "device-cuda"])
def test_demanded_gpu_that_is_missing_is_exit_3_with_the_remedy(flags, no_gpu, capsys):
    assert main(["doctor", *flags]) == 3
    out = capsys.readouterr().out
    assert "FAIL  driver" in out
    assert "install the NVIDIA driver 580 or newer" in out
    assert out.splitlines()[-1] == "training cannot start: repair driver, CUDA"


def test_args_file_is_obeyed(home, no_gpu, capsys):
    (home / "train_sigma_args.txt").write_text("--require-cuda\n")
    assert main(["doctor"]) == 3
    (home / "train_sigma_args.txt").write_text("--stepz\n")
    assert main(["doctor"]) == 2


H200 = (Gpu("NVIDIA H200", 139.8, (9, 0)),)


@pytest.mark.parametrize(
    "found, needed, status, words",
    [
        (Nvidia(problem="no NVIDIA driver is installed"), False, "WARN", "no NVIDIA driver"),
        (Nvidia(problem="no NVIDIA driver is installed"), True, "FAIL", "no NVIDIA driver"),
        (Nvidia("580.65.06", H200), True, "OK", "H200"),
        (Nvidia("535.161.08", H200), True, "FAIL", "driver 535.161.08 (CUDA 13 needs driver 580 or newer)"),
        (Nvidia("535.161.08", H200), False, "WARN", "535.161.08"),
        (Nvidia("580.65.06"), True, "FAIL", "sees no device"),
    ],
)
def test_driver(found, needed, status, words):
    finding = doctor.driver(needed, found)
    assert (finding.status, words in finding.text) == (status, True)
    assert bool(finding.remedy) == (status != "OK")


def test_frozen_library_path_is_not_handed_to_other_programs(monkeypatch):
    os.environ.update(LD_LIBRARY_PATH="/bundle", LD_LIBRARY_PATH_ORIG="/users")
    assert doctor.foreign_environment()["LD_LIBRARY_PATH"] == "/bundle"
    monkeypatch.setattr(paths, "is_frozen", lambda: True)
    assert doctor.foreign_environment()["LD_LIBRARY_PATH"] == "/users"
    del os.environ["LD_LIBRARY_PATH_ORIG"]
    assert "LD_LIBRARY_PATH" not in doctor.foreign_environment()


@pytest.mark.parametrize(
    "version, status", [("2.13.0+cpu", "OK"), ("2.11.0", "OK"), ("2.10.1+cu130", "FAIL"), ("1.13", "FAIL")]
)
def test_torch_must_be_new_enough(version, status, monkeypatch):
    fake = type("Torch", (), {"__version__": version})
    monkeypatch.setattr(doctor, "import_module", lambda name: fake)
    assert doctor.torch_version().status == status


@pytest.mark.parametrize(
    "error", [ImportError("no module"), OSError("libcudart.so.13: cannot open")], ids=["missing", "broken"]
)
def test_torch_that_cannot_be_imported_is_a_finding_not_a_crash(error, monkeypatch, home, capsys):
    def fail(name: str):
        raise error

    monkeypatch.setattr(doctor, "import_module", fail)
    assert doctor.torch_version().status == "FAIL"
    assert doctor.cuda(needed=False).status == "WARN"
    assert doctor.cuda(needed=True).status == "FAIL"


def test_output_folder_that_is_a_file_or_closed_fails(home, monkeypatch):
    (home / "file").write_text("")
    assert doctor.write_permission(home / "file" / "run").status == "FAIL"
    assert doctor.write_permission(home / "new" / "run").status == "OK"
    monkeypatch.setattr(paths, "is_writable", lambda folder: False)
    assert doctor.write_permission(home / "new" / "run").text == f"{home} is read-only"


@pytest.mark.parametrize("free_gb, status", [(0.5, "FAIL"), (20, "WARN"), (200, "OK")])
def test_disk_is_measured_against_the_budget_of_the_checkpoints(free_gb, status, home, monkeypatch):
    usage = namedtuple("Usage", "free")(free_gb * 1e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor.disk_space(home / "run", 50.0).status == status


@pytest.mark.parametrize("free_gb, status", [(1, "WARN"), (8, "OK")])
def test_memory(free_gb, status, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(free_gb * 1e9))
    assert doctor.memory().status == status


def test_damaged_corpus_fails(monkeypatch):
    def damaged(name: str):
        raise DataError("henry.jsonl.xz: damaged")

    assert doctor.corpus().status == "OK"
    monkeypatch.setattr("sigma.data.tokenizer.load_tokenizer", damaged)
    assert doctor.corpus() == Finding("data", "FAIL", "henry.jsonl.xz: damaged", "install the program again")


@pytest.mark.parametrize(
    "installed, mode, status", [(False, "off", "OK"), (False, "online", "WARN"), (True, "offline", "OK")]
)
def test_wandb_is_optional(installed, mode, status, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: object() if installed else None)
    assert doctor.wandb(mode).status == status


def test_missing_triton_and_compiler_are_warnings(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    os.environ.pop("CC", None)
    assert doctor.triton().status == "WARN"
    assert doctor.compiler().status == "WARN"


def test_table_is_aligned_and_remedies_stand_below():
    lines = format_findings([Finding("a", "OK", "fine"), Finding("long", "FAIL", "bad", "do this")])
    assert lines == [
        "OK    a     fine",
        "FAIL  long  bad",
        "            -> do this",
        "training cannot start: repair long",
    ]
