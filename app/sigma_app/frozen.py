"""What only the executable needs, before anything else runs: where Triton finds its backend, compiled driver and cache.

Triton asks `triton.knobs.build.impl` for a compiler when it is set. It is set the moment `triton.knobs` is imported, in
every process of the program, so that no process needs a compiler and none imports triton for this.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sigma_kernels.triton_cache import apply_cache_folder, spare_triton

KNOBS = "triton.knobs"


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Tell Triton which backend there is, and how to build its driver module. Standard library only."""
    environment.setdefault("TRITON_BACKENDS_IN_TREE", "1")  # the bundle has no entry points to find backends by
    environment.setdefault("TRITON_DEFAULT_BACKEND", "nvidia")  # ROCm left on the machine must not confuse it
    if sys.platform == "win32":
        # triton-windows looks for its own CUDA files in a site-packages that is not there, and takes an old toolkit's
        nvidia = Path(getattr(sys, "_MEIPASS", os.devnull)) / "triton" / "backends" / "nvidia"
        environment["CUDA_PATH"] = str(nvidia)
        spare_triton(environment)
    if not any(isinstance(finder, KnobsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, KnobsFinder())


class KnobsFinder(importlib.abc.MetaPathFinder):
    """Finds `triton.knobs` like the others do, and sets its build hook once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of `triton.knobs` with a loader around it; None for every other name."""
        if fullname != KNOBS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = KnobsLoader(spec.loader)
        return spec


class KnobsLoader(importlib.abc.Loader):
    """Loads the module with its own loader, then sets `build.impl` unless someone has."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the wrapped loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module and set the hook."""
        self._loader.exec_module(module)
        if module.build.impl is None:
            from sigma_app.native_build import build_extension

            module.build.impl = build_extension
        apply_cache_folder(os.environ)

    def __getattr__(self, name: str) -> Any:  # get_source and the like
        return getattr(self._loader, name)
