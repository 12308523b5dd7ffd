"""Shared libraries that belong to no Python distribution: they come from the system of the machine that builds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bundle.checksums import sha256


def system_libraries(internal: Path) -> list[Path]:
    """The libraries that PyInstaller put at the top of the bundle: those of wheels are links there, or lie deeper."""
    found = (path for path in internal.iterdir() if ".so" in path.name or path.suffix.lower() == ".dll")
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def copy_licences(libraries: list[Path], target: Path) -> dict[str, str]:
    """Copy what Debian's packages say about the copyright of these libraries; library name -> package.

    Empty on a system without dpkg: there the bill of materials names the files only.
    """
    if shutil.which("dpkg-query") is None:
        return {}
    owners: dict[str, str] = {}
    for library in libraries:
        query = ["dpkg-query", "--search", f"*/{library.name}"]
        done = subprocess.run(query, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
        package = next((name for name, file in owned_files(done.stdout) if same(file, library)), "")
        text = Path("/usr/share/doc") / package / "copyright"
        if package and text.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(text, target / f"{package}.txt")
            owners[library.name] = package
    return owners


def owned_files(answer: str) -> Iterator[tuple[str, Path]]:
    """(package, file) of each line `zlib1g:amd64: /lib/x86_64-linux-gnu/libz.so.1` of dpkg-query."""
    for line in answer.splitlines():
        packages, _, file = line.rpartition(": ")
        if packages:
            yield packages.split(":")[0].split(",")[0], Path(file)


def same(file: Path, library: Path) -> bool:
    """Whether the library in the bundle is that file: another of the same name may come from elsewhere."""
    return file.is_file() and sha256(file) == sha256(library)


def components(libraries: list[Path], owners: dict[str, str]) -> list[dict]:
    """The entries of the bill of materials."""
    return [
        {
            "type": "library",
            "bom-ref": f"file:{library.name}",
            "name": library.name,
            "hashes": [{"alg": "SHA-256", "content": sha256(library)}],
            "properties": [{"name": "sigma:package", "value": owners.get(library.name, "unknown")}],
        }
        for library in libraries
    ]
