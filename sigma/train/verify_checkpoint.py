"""Whether a checkpoint folder is complete and unchanged: COMMIT -> MANIFEST -> the hash of every file.

safetensors alone notices truncation but not a flipped bit, so the SHA-256 manifest is what decides. A folder without
COMMIT does not exist for a reader: its save was cut off.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigma.core import strict_json
from sigma.core.errors import SigmaError
from sigma.core.files import sha256_file

CHECKPOINTS_DIR = "checkpoints"
COMMIT = "COMMIT"
MANIFEST = "MANIFEST.json"
STATE = "state.json"
TENSORS_SUFFIX = ".safetensors"
SCHEMA = 1
MAX_MANIFEST_BYTES = 16 << 20
_FOLDER = re.compile(r"step-(\d{9,})")
_LEFT_BY_FILE_MANAGERS = {".DS_Store", "desktop.ini", "Thumbs.db"}


class CorruptCheckpointError(SigmaError):
    """A committed checkpoint whose content is not what was written; the message says what differs."""


class IncompatibleCheckpointError(SigmaError):
    """A sound checkpoint that this configuration cannot continue; the message lists the differences."""

    exit_code = 2


class UnreadableCheckpointError(SigmaError):
    """The system refuses to read a checkpoint (permission, failing disk), so that nothing can be said about it."""


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What MANIFEST.json says of a checkpoint; `parent` is the SHA-256 of the manifest that the run continued from."""

    schema: int
    step: int
    tokens: int
    parent: str | None
    identity: Mapping[str, Any]
    identity_sha256: str
    program: str
    created: str
    score: float | None
    files: Mapping[str, FileEntry]

    @property
    def bytes(self) -> int:
        """Size of all files together, without MANIFEST and COMMIT."""
        return sum(entry.bytes for entry in self.files.values())


def folder_name(step: int) -> str:
    """Name of the checkpoint folder of a step."""
    return f"step-{step:09d}"


def step_of(folder: Path) -> int | None:
    """Step that a folder's name claims, None when the name is not ours."""
    match = _FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def committed(checkpoints: Path) -> list[Path]:
    """Folders that carry a COMMIT (valid or not), newest step first. Raises UnreadableCheckpointError."""
    try:
        folders = [path for path in checkpoints.iterdir() if step_of(path) is not None and (path / COMMIT).exists()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(checkpoints, error) from error
    return sorted(folders, key=lambda path: step_of(path) or 0, reverse=True)


def verify_checkpoint(folder: Path) -> tuple[Manifest, str]:
    """Read and hash everything; returns the manifest and its SHA-256.

    Raises CorruptCheckpointError (what was read is not what was written), IncompatibleCheckpointError (a newer
    format), UnreadableCheckpointError (the system did not let us read).
    """
    try:
        manifest, digest = read_manifest(folder)
        _check_names(folder, manifest)
        for name, entry in manifest.files.items():
            _check_file(folder / name, entry)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{Path(str(error.filename)).name} is missing") from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    return manifest, digest


def _unreadable(folder: Path, error: OSError) -> UnreadableCheckpointError:
    return UnreadableCheckpointError(
        f"cannot read checkpoint {folder}: {error}; check the permissions and the disk. To go on without this"
        " checkpoint, move the folder away"
    )


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest, checked against COMMIT and the folder's name; the files are not read. Raises as above, OSError."""
    commit = _read_small(folder / COMMIT, 65)
    data = _read_small(folder / MANIFEST, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if commit != f"{digest}\n".encode():
        raise CorruptCheckpointError("COMMIT does not hold the SHA-256 of MANIFEST.json")
    manifest = _parse_manifest(folder, data)
    if manifest.step != step_of(folder):
        raise CorruptCheckpointError(f"MANIFEST.json is of step {manifest.step}, the folder is {folder.name}")
    return manifest, digest


def _read_small(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CorruptCheckpointError(f"{path.name} is longer than {limit} bytes")
    return data


def _parse_manifest(folder: Path, data: bytes) -> Manifest:
    try:
        fields = strict_json.loads(data)
        if fields["schema"] != SCHEMA:
            raise IncompatibleCheckpointError(
                f"checkpoint {folder} has format {fields['schema']}, this program reads format {SCHEMA}; continue it"
                f" with program version {fields['program']}, or use another --output-dir"
            )
        files = {name: FileEntry(int(e["bytes"]), str(e["sha256"])) for name, e in fields.pop("files").items()}
        return Manifest(**fields, files=files)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptCheckpointError(f"MANIFEST.json is not a manifest: {error!r}") from error


def _check_names(folder: Path, manifest: Manifest) -> None:
    found = {path.name for path in folder.iterdir()} - _LEFT_BY_FILE_MANAGERS
    expected = {*manifest.files, MANIFEST, COMMIT}
    if missing := sorted(expected - found):
        raise CorruptCheckpointError(f"missing files: {', '.join(missing)}")
    if extra := sorted(found - expected):
        raise CorruptCheckpointError(f"files that the manifest does not name: {', '.join(extra)}")


def _check_file(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise CorruptCheckpointError(f"{path.name} is not a plain file")
    size = path.stat().st_size
    if size != entry.bytes:
        raise CorruptCheckpointError(f"{path.name} has {size} bytes, the manifest says {entry.bytes}")
    if sha256_file(path) != entry.sha256:
        raise CorruptCheckpointError(f"{path.name} does not have the SHA-256 of the manifest")


def find_newest_valid(run_dir: Path) -> Path | None:
    """The newest sound checkpoint of a run, for readers that must not move anything; None when there is none.

    Raises UnreadableCheckpointError, IncompatibleCheckpointError.
    """
    for folder in committed(run_dir / CHECKPOINTS_DIR):
        try:
            verify_checkpoint(folder)
        except CorruptCheckpointError:
            continue  # the trainer will quarantine it with its reason
        return folder
    return None
