"""Can Triton work here: compile our kernels for every GPU, get its C module without a compiler, and launch?"""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from sigma_app.kernel_check import check_kernel
from sigma_app.selftest.gate import (
    Gate,
    NotHereError,
    bundle_folder,
    child,
    expect,
    only_frozen,
    output_of,
    own_folders,
)

CAPABILITIES = (80, 90, 100, 120)
"""Ampere, Hopper, and both assemblers' Blackwell."""
WIDTH = 768
FORWARD = ("*bf16", "*bf16", "*fp32", "*bf16", "*bf16", "*fp32", "i32", "i32", "i32", "fp32")
BACKWARD = ("*bf16", "*bf16", "*bf16", "*fp32", "*fp32", "*bf16", "*fp32", "i32", "i32", "i32", "i32")

# Loads Triton's C module as the first launch would, against a driver that answers every call with an error.
LOAD_MODULE = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
import triton
if sys.argv[2] == "tinycc":
    from pathlib import Path
    from sigma_app.native_build import Order, with_tinycc
    def impl(name, source, folder, *rest):
        return str(with_tinycc(Order(name, Path(source), Path(folder), *rest))[0])
    sys.modules["triton.knobs"].build.impl = impl
from triton.backends.nvidia.driver import CudaUtils
utils = CudaUtils()
print(utils.build_signature_metadata([]) if hasattr(utils, "build_signature_metadata") else "loaded")  # not in 3.6
"""


def cubins() -> str:
    """The fused RMSNorm, forward and backward, becomes machine code for each architecture."""
    kernel, torch = import_module("sigma_kernels.rms_norm.kernel"), import_module("torch")
    tile = kernel.tile_of(WIDTH, torch.float32)
    sizes = []
    with tempfile.TemporaryDirectory() as cache, import_module("triton").knobs.cache.scope():
        import_module("triton").knobs.cache.dir = cache  # a cubin made earlier proves nothing
        for capability in CAPABILITIES:
            for function, types in ((kernel._rms_norm_fwd_kernel, FORWARD), (kernel._rms_norm_bwd_kernel, BACKWARD)):
                sizes.append(cubin_bytes(function, types, capability, tile))
    return f"{len(sizes)} cubins for sm_{', sm_'.join(map(str, CAPABILITIES))}, {sum(sizes):,} bytes"


def cubin_bytes(function: Any, types: tuple[str, ...], capability: int, tile: dict[str, Any]) -> int:
    """Compile one kernel; the size of its machine code. Raises GateError when there is none."""
    triton, compiler = import_module("triton"), import_module("triton.compiler")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    constants = {name: value for name, value in tile.items() if name != "num_warps"}
    names = [name for name in function.arg_names if name not in constants]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    source = compiler.ASTSource(function, signature, constants)
    cubin = triton.compile(source, target=target, options={"num_warps": tile["num_warps"]}).asm["cubin"]
    expect(cubin[:4] == b"\x7fELF", f"no cubin for sm_{capability}")
    return len(cubin)


def ready_made_module() -> str:
    """The bundle's own `cuda_utils` is chosen with no compiler in sight, and loads."""
    done = load_module("first")
    expect("ready-made, from the bundle" in done[1], f"it came from elsewhere: {done[1].strip() or 'nothing said'}")
    return done[1].strip().splitlines()[-1]


def tinycc_module() -> str:
    """The bundled compiler makes the module anew, should the ready-made one not fit."""
    load_module("tinycc")
    return "compiled and loaded, without a compiler or headers of this machine"


def load_module(way: str) -> tuple[str, str]:
    """(stdout, stderr) of a child that gets the module in one way and loads it against the stub of the driver."""
    only_frozen()
    stub = bundle_folder() / "native" / "selftest" / ("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    with tempfile.TemporaryDirectory() as folder:
        own = {**own_folders(Path(folder)), "PATH": "", "CC": ""}
        # The C module is linked against the driver's library, which a machine without a GPU lacks: the stub stands in
        # for it; it has every function that the module names, and each fails. Windows' TinyCC has a list of its own.
        if os.name != "nt":
            own["TRITON_LIBCUDA_PATH"] = str(stub.parent)
        done = child(["-c", LOAD_MODULE, str(stub), way], **own)
    return output_of(done), done.stderr


def launch() -> str:
    """A real kernel on the real GPU gives what the reference gives."""
    if not import_module("torch").cuda.is_available():
        raise NotHereError("no GPU that this torch can use")
    return check_kernel()


GATES = [
    Gate("cubins", cubins),
    Gate("C module, ready-made", ready_made_module),
    Gate("C module, TinyCC", tinycc_module),
    Gate("kernel on the GPU", launch),
]
