"""What turns the frozen folder into a product: notices, args file, checksums, and the facts about the build."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle import checksums, freeze, notices, plan, system_libraries
from bundle.publish import FACTS

BILL = "sbom.cdx.json"
SOURCE_FOLDERS = {"sigma": "sigma", "sigma_kernels": "kernels/sigma_kernels", "sigma_app": "app/sigma_app"}


@dataclass(frozen=True)
class Table:
    """The size report."""

    path: Path
    total_mib: float


def facts(root: Path, flavour: str, epoch: int) -> dict[str, Any]:
    """What was built of what; goes into the bundle as `build.json`."""
    version = importlib.metadata.version(plan.PROJECT)
    return {
        "name": f"sigma-{version}-{flavour}",
        "version": version,
        "flavour": flavour,
        "epoch": epoch,
        "python": sys.version.split()[0],
        "torch": importlib.metadata.version("torch"),
        "triton": importlib.metadata.version(plan.triton_distribution()),
        "sources_sha256": sources_digest(root),
    }


def sources_digest(root: Path) -> str:
    """One hash over the names and contents of our packages."""
    digest = hashlib.sha256()
    for folder in SOURCE_FOLDERS.values():
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root).as_posix()} {checksums.sha256(path)}\n".encode())
    return digest.hexdigest()


def complete(folder: Path, root: Path, known: Mapping[str, Any]) -> None:
    """Put everything beside the executable that is not the program; the checksums last."""
    sys.path[:0] = [str(root), str(root / "kernels"), str(root / "app")]
    from sigma.config.explain import args_template

    needed = plan.needed_distributions()
    tinycc = (folder / freeze.INTERNAL / "native" / "tcc").is_dir()
    notices.write_licences(folder, needed, root, with_tinycc=tinycc)
    libraries = system_libraries.system_libraries(folder / freeze.INTERNAL)
    owners = system_libraries.copy_licences(libraries, folder / "licenses" / "system")
    bill = notices.bill_of_materials(
        needed,
        version=known["version"],
        epoch=known["epoch"],
        with_tinycc=tinycc,
        others=system_libraries.components(libraries, owners),
    )
    (folder / BILL).write_text(bill, encoding="utf-8")
    args_file = folder / checksums.ARGS_FILE
    args_file.write_text(args_template(), encoding="utf-8")
    if sys.platform == "linux":
        shutil.copy2(root / "packaging" / "sigma.desktop", folder / "sigma.desktop")
        (folder / "sigma.desktop").chmod(0o755)
    top_level = sorted({*(path.name for path in folder.iterdir()), checksums.SUMS})
    described = {**known, "args_file_sha256": checksums.sha256(args_file), "top_level": top_level}
    (folder / FACTS).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    checksums.write_sums(folder)
    freeze.set_times(folder, known["epoch"])


def report(folder: Path, target: Path, known: Mapping[str, Any], seconds: Mapping[str, float]) -> Table:
    """Print the size of each component, write it with the times of the steps, and return the total."""
    parts = checksums.sizes(folder, freeze.INTERNAL)
    total = sum(parts.values())
    for name, size in list(parts.items())[:12]:
        print(f"{size / 2**20:8,.1f} MiB  {name}")
    print(f"{total / 2**20:8,.1f} MiB  in {len(parts)} components")
    whole = {**known, "bytes": total, "components": parts, "seconds": dict(seconds)}
    target.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return Table(target, total / 2**20)
