"""Compiles a Triton kernel to a cubin on a machine without a GPU, and says what it would use of one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# `make test` compiles for the three generations that differ most; the others are slow tests.
EVERY_CAPABILITY = [
    pytest.param(capability, id=f"sm_{capability}", marks=() if capability in (80, 90, 120) else pytest.mark.slow)
    for capability in (80, 86, 89, 90, 100, 120)
]


class Usage(NamedTuple):
    """What one program of the kernel occupies."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    waiting: bool
    """The products of a warp group wait for each other: ptxas "serialized" them."""
    load_bytes: int
    """The least that a thread loads from global memory at once; 0 when it loads nothing."""


def compile_kernel(
    kernel: Any,
    types: list[str | None],
    *,
    capability: int,
    num_warps: int,
    options: dict[str, Any] | None = None,
    **constexprs: Any,
) -> Usage:
    """Compile `kernel` for `sm_<capability>`; fails when no cubin comes out.

    Args:
        kernel: a `triton.jit` function.
        types: one for each argument that is not a constexpr, in order: `*bf16`, `i32`, `fp32`, None for an absent
            pointer; `i32:16` is an integer known to be divisible by 16, as pointers always are.
        capability: 90 for compute capability 9.0.
        num_warps: as in the launch.
        constexprs: the compile-time arguments, by name.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name in kernel.arg_names if name not in constexprs]
    assert len(names) == len(types), f"{kernel.__name__} takes {names}"
    given = dict(zip(names, types, strict=True))
    constants = constexprs | {name: None for name, kind in given.items() if kind is None}
    signature = {
        name: "constexpr" if name in constants else str(given[name]).removesuffix(":16") for name in kernel.arg_names
    }
    aligned = [name for name, kind in given.items() if kind is not None and (kind[0] == "*" or kind.endswith(":16"))]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, **(options or {})}
    )
    cubin = compiled.asm["cubin"]
    assert len(cubin) > 0
    waiting = capability == 90 and _products_wait(cubin)
    shared, narrowest = compiled.metadata.shared, _narrowest_load(compiled.asm["ptx"])
    return Usage(*_registers_and_spills(cubin), shared_bytes=shared, waiting=waiting, load_bytes=narrowest)


def assert_lean(usage: Usage, most_registers: int) -> None:
    """Nothing is spilled, and so many registers of a thread let enough warps share a multiprocessor."""
    assert usage.spilled_bytes == 0
    assert usage.registers <= most_registers


def _registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Asks the cuobjdump that Triton brings along; local memory that is not the stack's is what was spilled."""
    text = _said_of(cubin, "cuobjdump", "--dump-resource-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _narrowest_load(ptx: str) -> int:
    loads = re.findall(r"\bld\.global(?:\.\w+)*?(?:\.v(\d))?\.[busf](\d+)\b", ptx)
    return min((int(words or 1) * int(bits) // 8 for words, bits in loads), default=0)


def _products_wait(cubin: bytes) -> bool:
    """Several products of a warp group (HGMMA), each with a barrier of its own (gsb) to wait at."""
    products = re.findall(r"HGMMA.*", _said_of(cubin, "nvdisasm", "-c"))
    return len(products) > 1 and all("gsb" in product for product in products)


def _said_of(cubin: bytes, tool: str, option: str) -> str:
    """What a tool that Triton brings along says of a cubin."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [getattr(triton.knobs.nvidia, tool).path, option, path]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
