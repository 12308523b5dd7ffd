"""The kernels of others, from `.peers/` (never committed) or from what is installed; Skip says what is missing.

    .peers/mamba_ssm   the package folder of the `mamba-ssm` source archive, 2.3.2 or newer
    .peers/site        unpacked wheels: fla-core and einops

They are downloaded with `pip download --no-deps`, the first one with `--no-binary :all:` as well; nothing is compiled.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any

from record import ROOT
from registry import Skip

PEERS = ROOT / ".peers"


def _add_site() -> None:
    site = str(PEERS / "site")
    if os.path.isdir(site) and site not in sys.path:
        sys.path.append(site)


@cache
def _stand_in() -> None:
    """Put a package without its `__init__` in place, which would import transformers and compiled extensions."""
    folder = PEERS / "mamba_ssm"
    if not (folder / "ops" / "triton" / "mamba3").is_dir():
        raise Skip("no .peers/mamba_ssm with ops/triton/mamba3; unpack the source archive of mamba-ssm 2.3.2 there")
    package = types.ModuleType("mamba_ssm")
    package.__path__ = [str(folder)]
    sys.modules["mamba_ssm"] = package


def _import(module: str, name: str) -> Callable[..., Any]:
    _add_site()
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise Skip(
            f"{module} cannot be imported ({error}); see kernels/bench/peers.py for what belongs in .peers"
        ) from None


def mamba3_siso() -> Callable[..., Any]:
    """The official Mamba-3 scan in Triton, rank 1."""
    _stand_in()
    return _import("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined", "mamba3_siso_combined")


def mamba3_siso_step() -> Callable[..., Any]:
    """The official Mamba-3 decode step in Triton, rank 1."""
    _stand_in()
    return _import("mamba_ssm.ops.triton.mamba3.mamba3_siso_step", "mamba3_siso_step")


def mamba_rms_norm() -> Callable[..., Any]:
    """The norm that the official layer puts on B and C."""
    _stand_in()
    return _import("mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn")


def mamba2_chunk_scan() -> Callable[..., Any]:
    """The official Mamba-2 scan in Triton."""
    _stand_in()
    return _import("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")


def simple_gla() -> Callable[..., Any]:
    """flash-linear-attention's scan with one decay per head."""
    os.environ.setdefault("FLA_TILELANG", "0")
    return _import("fla.ops.simple_gla", "chunk_simple_gla")
