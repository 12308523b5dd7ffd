"""The files that are handed out: the folder in archives under the size that hosts accept, and a patch of our sources.

Every archive unpacks on its own, with what the system has (`tar` on Linux, the Explorer on Windows); several of them
unpacked into one place make the folder. So a part is a set of whole files, and nothing has to be joined.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bundle import checksums, freeze, plan

LIMIT_BYTES = 1_900_000_000
_COMPRESSION = 6
_HEADER_BYTES = 4096
"""More than the archive needs beside the content of a file."""


class Writer(Protocol):
    """One archive that is being written."""

    def add(self, path: Path, name: str) -> None: ...
    def written(self) -> int: ...
    def close(self) -> None: ...


class TarWriter:
    """`.tar.gz` with fixed dates and owners; keeps links and the permission to run."""

    suffix = ".tar.gz"

    def __init__(self, path: Path, epoch: int) -> None:
        self._raw, self._epoch = path.open("wb"), epoch
        self._gzip = gzip.GzipFile("", "wb", _COMPRESSION, self._raw, mtime=epoch)
        self._tar = tarfile.TarFile(fileobj=self._gzip, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, path: Path, name: str) -> None:
        """Add one file or link under `name`."""
        info = self._tar.gettarinfo(path, name)
        info.mtime, info.uid, info.gid, info.uname, info.gname = self._epoch, 0, 0, "", ""
        info.mode = 0o777 if path.is_symlink() else 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        if not info.isreg():
            self._tar.addfile(info)
            return
        with path.open("rb") as file:
            self._tar.addfile(info, file)

    def written(self) -> int:
        """Bytes in the file."""
        return self._raw.tell()

    def close(self) -> None:
        """End the archive."""
        self._tar.close()
        self._gzip.close()
        self._raw.close()


class ZipWriter:
    """`.zip` with fixed dates, for Windows."""

    suffix = ".zip"

    def __init__(self, path: Path, epoch: int) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION)
        self._date = time.gmtime(max(epoch, 315_532_800))[:6]  # zip knows no date before 1980

    def add(self, path: Path, name: str) -> None:
        """Add one file under `name`."""
        info = zipfile.ZipInfo(name, self._date)
        info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
        info.file_size = path.stat().st_size
        with path.open("rb") as source, self._zip.open(info, "w") as target:
            while block := source.read(1 << 20):
                target.write(block)

    def written(self) -> int:
        """Bytes in the file."""
        assert self._zip.fp is not None
        return self._zip.fp.tell()

    def close(self) -> None:
        """End the archive."""
        self._zip.close()


def write_parts(
    folder: Path,
    target: Path,
    name: str,
    *,
    epoch: int,
    writer: type[TarWriter] | type[ZipWriter],
    limit: int = LIMIT_BYTES,
) -> list[Path]:
    """Archives of `folder` (under its own name) in `target`, each at most `limit` bytes; their paths.

    One archive is `<name>.tar.gz`, several are `<name>-part1.tar.gz`, ...
    """
    parts: list[Path] = []
    current: Writer | None = None
    for path in entries(folder):
        room = limit - (current.written() if current else 0)
        if current is None or (
            path.lstat().st_size * 1.001 + _HEADER_BYTES > room and current.written() > _HEADER_BYTES
        ):
            if current is not None:
                current.close()
            parts.append(target / f"{name}-part{len(parts) + 1}{writer.suffix}")
            current = writer(parts[-1], epoch)
        current.add(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    if current is not None:
        current.close()
    return parts if len(parts) != 1 else [parts[0].rename(target / f"{name}{writer.suffix}")]


def write_patch(
    folder: Path,
    target: Path,
    name: str,
    *,
    packages: Iterable[Path],
    epoch: int,
    writer: type[TarWriter] | type[ZipWriter],
) -> Path:
    """The `.py` files in `packages` (folders inside `folder`) in one archive, to unpack over the folder."""
    path = target / f"{name}{writer.suffix}"
    archive = writer(path, epoch)
    for package in sorted(packages):
        for source in sorted(package.rglob("*.py")):
            archive.add(source, f"{folder.name}/{source.relative_to(folder).as_posix()}")
    archive.close()
    return path


def entries(folder: Path) -> list[Path]:
    """Files and links, sorted by name."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def write_all(folder: Path, target: Path, facts: Mapping[str, Any], *, windows: bool) -> None:
    """The archives of the folder, the source patch, and their checksums."""
    target.mkdir()
    writer, name, epoch = ZipWriter if windows else TarWriter, facts["name"], facts["epoch"]
    write_parts(folder, target, name, epoch=epoch, writer=writer)
    packages = [folder / freeze.INTERNAL / package for package in plan.OWN_PACKAGES]
    write_patch(folder, target, f"{name}-source-patch", packages=packages, epoch=epoch, writer=writer)
    checksums.write_sums(target)
