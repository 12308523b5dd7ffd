"""What the bundle holds and what it leaves out: distributions, modules, files. Pure functions, no building."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "sigma-trainer"
OWN_PACKAGES = ("sigma", "sigma_kernels", "sigma_app")
SOURCE_FIRST = (*OWN_PACKAGES, "triton")
"""Packages that run from readable `.py` files: ours for updates by a source patch, triton because it reads its own."""

# Imported by nothing that we run; each would bring libraries of its own, the first three under the GPL or the like.
UNUSED_MODULES = (
    "readline",
    "_gdbm",
    "_dbm",
    "_tkinter",
    "nis",
    "tkinter",
    "torch.utils.tensorboard",
    "triton._C.libproton",
    "triton.backends.amd",
    "triton.profiler",
)
# transformers reads every file below `models` at each start, to list its classes: a second for 540 models of others.
KEPT_MODELS = ("auto", "encoder_decoder")
# setuptools refers to these through aliases of its own, and PyInstaller stops when one of them is excluded; the second
# line's are libraries that setuptools brings along and that it takes from elsewhere when they are installed.
NEVER_EXCLUDED = {
    *("PyInstaller", "_distutils_hack", "pip", "pkg_resources", "setuptools", "wheel"),
    *("autocommand", "backports", "importlib_metadata", "importlib_resources", "inflect", "jaraco", "more_itertools"),
    *("ordered_set", "tomli", "typeguard", "zipp"),
}
UNUSED_STDLIB = {
    *("antigravity", "this", "turtle", "turtledemo", "tkinter", "idlelib"),
    *("distutils", "ensurepip", "lib2to3", "venv", "test"),
}

# Files that libraries bring for their own builds and tests. Never a single .py of torch or triton: both hash all their
# sources (torch_key, triton_key) and fail when one that a module list names is not there.
_UNUSED_FILES = re.compile(
    r"[^/]+\.dist-info/(?:INSTALLER|RECORD|REQUESTED|direct_url\.json|licenses/|sboms/)"
    r"|libcudart\.so$"  # a toolkit of the machine that builds; torch brings its own
    r"|torch/(?:test|include|share)/"
    r"|torch/bin/(?!torch_shm_manager)"
    r"|torch/lib/lib(?:torchbind_test|jitbackend_test|backend_with_compiler|aoti_custom_ops)\."
    r"|triton/(?:instrumentation|plugins|FileCheck|profiler)(?:/|$)"
    r"|triton/_C/libproton\."
    r"|triton/backends/amd(?:/|$)"
    r"|triton/backends/nvidia/bin/(?:cuobjdump|nvdisasm)"
    r"|triton/backends/nvidia/lib/cupti"
    r"|triton/backends/nvidia/include/(?!cuda\.h$)"
    r"|numpy/(?:.*/)?tests/"
    rf"|transformers/models/(?!(?:{'|'.join(KEPT_MODELS)})/)[^/]+/"
    r"|pyarrow/(?:include|src|tests)/|pyarrow/.*\.(?:pxd|pxi|pyx)$"
    r"|pyarrow/_(?:flight|s3fs|pyarrow_cpp_tests)\."  # parts that pyarrow can be without
    r"|(?:pyarrow/)?(?:lib)?arrow_(?:python_)?(?:flight|s3)\."
    r"|(?!triton/runtime/tcc/|triton/backends/nvidia/lib/x64/cuda\.lib).*\.(?:a|lib|pyi|cu|cuh)$"
)


def triton_distribution() -> str:
    """The name under which this system's Triton is installed."""
    return "triton-windows" if sys.platform == "win32" else "triton"


def needed_distributions(root: str = PROJECT) -> list[str]:
    """Every distribution that `root` requires here, at any depth, without extras; sorted canonical names.

    Raises importlib.metadata.PackageNotFoundError when one of them is not installed.
    """
    found: set[str] = set()
    open_ends = [(canonicalize_name(root), "")]
    seen = set(open_ends)
    while open_ends:
        name, extra = open_ends.pop()
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            child = canonicalize_name(requirement.name)
            found.add(child)
            wanted = {(child, one) for one in ("", *requirement.extras)} - seen
            seen |= wanted
            open_ends += wanted
    return sorted(found)


def direct_modules(root: str = PROJECT) -> list[str]:
    """The modules of the distributions that `root` itself requires here, where they have the same name.

    PyInstaller drops a package when the only import of it names a part that is made at run time (`fastwarc.warc`).
    """
    direct = [Requirement(line) for line in importlib.metadata.requires(root) or []]
    names = {canonicalize_name(one.name) for one in direct if one.marker is None or one.marker.evaluate({"extra": ""})}
    owners = importlib.metadata.packages_distributions()
    return sorted(module for module in owners if module.isidentifier() and canonicalize_name(module) in names)


def foreign_modules(needed: Iterable[str]) -> list[str]:
    """Importable names of the installed distributions that are not in `needed`: tools, tests, optional parts."""
    allowed = {canonicalize_name(name) for name in (PROJECT, *needed)}
    owners = importlib.metadata.packages_distributions()
    return sorted(
        module
        for module, distributions in owners.items()
        if module.isidentifier()
        and module not in NEVER_EXCLUDED
        and not allowed & {canonicalize_name(name) for name in distributions}
    )


def unused_models() -> list[str]:
    """The models of others that transformers brings along, as module names; sorted."""
    spec = importlib.util.find_spec("transformers")
    folders = (Path(place) / "models" for place in (spec and spec.submodule_search_locations) or ())
    found = (path.parent.name for folder in folders for path in folder.glob("*/__init__.py"))
    return sorted(f"transformers.models.{name}" for name in found if name not in KEPT_MODELS)


def is_foreign_metadata(name: str, needed: Iterable[str]) -> bool:
    """Whether a file describes a distribution that is not in the bundle; hooks collect those for checks of versions."""
    folder = name.replace("\\", "/").split("/")[0]
    if not folder.endswith(".dist-info"):
        return False
    return canonicalize_name(folder.split("-")[0]) not in {PROJECT, *needed}


def is_unused_file(name: str) -> bool:
    """Whether a collected file (its path in the bundle) is left out."""
    return _UNUSED_FILES.match(name.replace("\\", "/")) is not None


def stdlib_modules() -> list[str]:
    """The standard library as module names, without its tests and its graphical and installing parts."""
    names: list[str] = []
    for name in sorted(sys.stdlib_module_names - UNUSED_STDLIB - set(UNUSED_MODULES)):
        spec = None if name.startswith("__") else importlib.util.find_spec(name)
        if spec is None:
            continue  # another platform's
        names.append(name)
        for folder in spec.submodule_search_locations or ():
            names += (f"{name}.{rest}" for rest in _submodules(Path(folder)))
    return names


def _submodules(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and not any(part in ("test", "tests", "__main__") or part.startswith("test_") for part in parts):
            yield ".".join(parts)
