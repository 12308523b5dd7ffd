"""The archives hold the folder, each on its own and none too large; the same folder gives the same bytes."""

import os
import stat
import tarfile
import zipfile

import pytest

from bundle import archives
from bundle.archives import TarWriter, ZipWriter

EPOCH = 1_700_000_000


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "sigma"
    (root / "_internal" / "sigma" / "core").mkdir(parents=True)
    for number in range(6):  # random bytes: nothing to compress
        (root / "_internal" / f"lib{number}.so").write_bytes(os.urandom(40_000))
    (root / "_internal" / "sigma" / "core" / "a.py").write_text("one = 1\n")
    (root / "_internal" / "sigma" / "core" / "text.txt").write_text("not code\n")
    (root / "sigma").write_text("#!program\n")
    (root / "sigma").chmod(0o755)
    return root


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack(parts, target):
    for part in parts:
        if part.suffix == ".zip":
            zipfile.ZipFile(part).extractall(target)
        else:
            with tarfile.open(part) as archive:
                archive.extractall(target, filter="tar")


@pytest.mark.parametrize("writer", [TarWriter, ZipWriter])
@pytest.mark.parametrize("limit, parts", [(10**9, 1), (100_000, 3)])
def test_the_parts_unpacked_into_one_place_are_the_folder(folder, tmp_path, writer, limit, parts):
    (tmp_path / "out").mkdir()
    made = archives.write_parts(folder, tmp_path / "out", "sigma-1", epoch=EPOCH, writer=writer, limit=limit)
    assert len(made) == parts
    assert all(path.stat().st_size <= limit for path in made)
    unpack(made, tmp_path / "unpacked")
    assert contents(tmp_path / "unpacked" / "sigma") == contents(folder)


def test_one_archive_has_no_number_in_its_name(folder, tmp_path):
    (made,) = archives.write_parts(folder, tmp_path, "sigma-1", epoch=EPOCH, writer=TarWriter)
    assert made.name == "sigma-1.tar.gz"
    first, *_ = archives.write_parts(folder, tmp_path, "sigma-1", epoch=EPOCH, writer=TarWriter, limit=100_000)
    assert first.name == "sigma-1-part1.tar.gz"


@pytest.mark.skipif(os.name == "nt", reason="no links and no permission to run on Windows")
def test_a_tar_keeps_links_and_the_permission_to_run(folder, tmp_path):
    (folder / "_internal" / "link.so").symlink_to("lib0.so")
    made = archives.write_parts(folder, tmp_path, "sigma-1", epoch=EPOCH, writer=TarWriter)
    unpack(made, tmp_path / "unpacked")
    there = tmp_path / "unpacked" / "sigma"
    assert (there / "_internal" / "link.so").readlink().name == "lib0.so"
    assert (there / "sigma").stat().st_mode & stat.S_IXUSR
    assert not (there / "_internal" / "lib0.so").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("writer", [TarWriter, ZipWriter])
def test_the_same_files_give_the_same_bytes_whatever_their_dates(folder, tmp_path, writer):
    (first,) = archives.write_parts(folder, tmp_path, "first", epoch=EPOCH, writer=writer)
    for path in folder.rglob("*"):
        os.utime(path, (EPOCH + 5, EPOCH + 7))
    (second,) = archives.write_parts(folder, tmp_path, "second", epoch=EPOCH, writer=writer)
    assert first.read_bytes() == second.read_bytes()


def test_the_patch_is_the_sources_of_the_packages_and_updates_the_folder(folder, tmp_path):
    packages = [folder / "_internal" / "sigma"]
    patch = archives.write_patch(folder, tmp_path, "patch", packages=packages, epoch=EPOCH, writer=TarWriter)
    with tarfile.open(patch) as archive:
        assert archive.getnames() == ["sigma/_internal/sigma/core/a.py"]
    (folder / "_internal" / "sigma" / "core" / "a.py").write_text("one = 'old'\n")
    unpack([patch], folder.parent)
    assert (folder / "_internal" / "sigma" / "core" / "a.py").read_text() == "one = 1\n"
