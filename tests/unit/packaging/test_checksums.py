"""The list of checksums covers every file but the one that is there to be edited; the size table adds up."""

import shutil
import subprocess

import pytest

from bundle import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "_internal" / "torch").mkdir(parents=True)
    (tmp_path / "_internal" / "torch" / "lib.so").write_bytes(b"x" * 300)
    (tmp_path / "_internal" / "libz.so").write_bytes(b"z" * 20)
    (tmp_path / "sigma").write_bytes(b"program")
    (tmp_path / checksums.ARGS_FILE).write_text("--steps 1\n")
    (tmp_path / "link").symlink_to("sigma")
    return tmp_path


def test_every_file_but_the_args_file_is_listed_once_and_in_order(folder):
    checksums.write_sums(folder)
    names = [line.split("  ")[1] for line in (folder / checksums.SUMS).read_text().splitlines()]
    assert names == ["_internal/libz.so", "_internal/torch/lib.so", "sigma"]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_reads_the_list_and_notices_a_changed_file(folder):
    checksums.write_sums(folder)
    command = ["sha256sum", "--quiet", "-c", checksums.SUMS]
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
    (folder / "sigma").write_bytes(b"changed")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


def test_sizes_by_component_add_up_to_the_folder(folder):
    assert checksums.sizes(folder, "_internal") == {
        "_internal/torch": 300,
        "_internal/*": 20,
        checksums.ARGS_FILE: 10,
        "sigma": 7,
    }
