"""Every kernel of the Triton scan compiles to a cubin, within recorded bounds of shared memory and spills."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sigma_kernels.architecture import architecture_of
from sigma_kernels.scan.triton_launch import ChannelLaunch, tiles_of
from tests.kernels.compile_only import EVERY_CAPABILITY, Usage, compile_kernel

pytest.importorskip("triton")

HEADS, STATE, HEAD_SIZE, PAIRS = 32, 128, 64, 32
CONSUMER_SHARED_MEMORY = 99 * 1024
# Bytes of local memory, rank 1 and rank 4, with the matrix products of sm_90 and sm_100 and with those of the others.
WARPGROUP_SPILLS = {
    "state_pass_kernel": (8, 0),  # on sm_100 alone, whose assembler keeps to 80 registers
    "state_pass_kernel segments": (40, 0),  # likewise
    "chunk_outer_backward_kernel": (0, 8),
    "scan_output_kernel": (0, 16),
    "value_gradient_kernel": (32, 264),
    "matrix_gradient_kernel": (88, 0),
}
WARP_SPILLS = {"value_gradient_kernel": (72, 128)}
# What a launch passes in 16 bits; the rest is fp32, the phases int16, their totals and the sequences int32.
HALF = {
    "q_ptr", "k_ptr", "x_ptr", "z_ptr", "out_ptr", "added_ptr", "start_ptr", "dy_ptr", "dz_ptr", "dout_ptr", "dx_ptr",
    "dend_ptr", "dstart_ptr", "dq_ptr", "dk_ptr", "head_ptr", "dd_dt_ptr", "dd_a_ptr", "trap_ptr",
    "angle_ptr", "ddd_dt_ptr", "ddd_a_ptr", "dtrap_ptr",
}  # fmt: skip
INTEGERS = {"phase_ptr": "*i16", "total_ptr": "*i32", "turn_ptr": "*i32", "sequence_ptr": "*i32"}
BIASES = {"q_bias_ptr", "k_bias_ptr"}  # fp16 with ranks
UNALIGNED = {"restart_blocks", "chunks", "steps", "length", "segments"}
ABSENT = {"sequence_ptr", "valid_ptr", "next_ptr", "previous_ptr", "initial_ptr", "length"}
OF_SEGMENTS = {"initial_ptr", "length"}
MIMO = {"expand_x_ptr", "expand_z_ptr", "combine_ptr", "dexpand_x_ptr", "dexpand_z_ptr", "dcombine_ptr"}


def kernels(rank: int, capability: int = 90) -> dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Kernel, compile-time arguments and launch options by name, as the table has them for bf16.

    A word behind the name says which of its forms it is.
    """
    from sigma_kernels.scan import triton_scan, triton_segments
    from sigma_kernels.scan.triton_call import (
        COEFFICIENT_TILE,
        OVER_HEADS_STAGES,
        PHASE_BACKWARD_STEPS,
        PHASE_STEPS,
        Sizes,
        shape_class,
    )

    tiles = tiles_of(shape_class(HEAD_SIZE, STATE, rank, torch.bfloat16, architecture_of(capability)))
    n = Sizes(8, 4096, HEADS, HEAD_SIZE, STATE, rank, 1, PAIRS, tiles)
    phase = {"HEADS": n.heads_phase, "BLOCK_S": n.block_s, "STEPS": n.steps}
    phase_backward = phase | {"BLOCK_RESTART": 16, "AT_ONCE": PHASE_BACKWARD_STEPS}
    heads = {"S": PAIRS, "N": STATE, "G": 1, "R": rank, "RANK": rank, "STEPS": tiles.sum_rows // rank}
    heads |= {"HALF": n.channels(tiles.over_heads)["HALF"], "STAGES": OVER_HEADS_STAGES}

    passes = n.state_pass(), tiles.state_pass.options()
    forth, back = ((passes[0] | {"BACK": way}, passes[1]) for way in (False, True))

    def tiled(launch: ChannelLaunch) -> tuple[dict[str, Any], dict[str, Any]]:
        return n.matrix(launch, torch.bfloat16), launch.options()

    specified = {
        "coefficients_kernel": (COEFFICIENT_TILE | {"BLOCK_S": n.block_s}, {"num_warps": 4}),
        "coefficients_backward_kernel": (COEFFICIENT_TILE, {"num_warps": 4}),
        "phase_forward_kernel": (phase | {"AT_ONCE": PHASE_STEPS}, tiles.phase.options()),
        "phase_backward_kernel": (phase_backward, tiles.phase_backward.options()),
        "chunk_outer_kernel": tiled(tiles.outer),
        "chunk_outer_backward_kernel": tiled(tiles.outer),
        "state_pass_kernel": passes,
        "state_pass_kernel segments": passes,
        "state_pass_backward_kernel": passes,
        "state_pass_backward_kernel segments": passes,
        "segment_pass_kernel": forth,
        "segment_pass_kernel back": back,
        "border_pass_kernel": forth,
        "border_pass_kernel back": back,
        "scan_output_kernel": tiled(tiles.output),
        "norm_backward_kernel": tiled(tiles.norm_backward),
        "value_gradient_kernel": tiled(tiles.value),
        "matrix_gradient_kernel": tiled(tiles.matrix),
        "over_heads_kernel": (heads, tiles.over_heads.options()),
    }
    known = vars(triton_scan) | vars(triton_segments)
    return {name: (known[name.split()[0]], *found) for name, found in specified.items()}


def type_of(name: str, rank: int, norm: bool, present: set[str]) -> str | None:
    """The type of one argument, as `compile_kernel` takes it. Only the norm's kernel is compiled for a norm."""
    if name in ABSENT - present or (rank == 1 and name in MIMO) or (not norm and name == "norm_ptr"):
        return None
    if rank > 1 and name in BIASES:
        return "*fp16"
    if name.endswith("_ptr"):
        return INTEGERS.get(name, "*bf16" if name in HALF else "*fp32")
    return "i32" if name in UNALIGNED else "i32:16"


def compiled(name: str, rank: int, capability: int, *, packed: bool = False) -> Usage:
    kernel, constexprs, options = kernels(rank, capability)[name]
    norm = name == "norm_backward_kernel"
    present = (OF_SEGMENTS if "segment" in name else set()) | ({"sequence_ptr"} if packed else set())
    arguments = [argument for argument in kernel.arg_names if argument not in constexprs]
    types = [type_of(argument, rank, norm, present) for argument in arguments]
    options = dict(options)
    warps = options.pop("num_warps")
    return compile_kernel(kernel, types, capability=capability, num_warps=warps, options=options, **constexprs)


MATRIX_KERNELS = [
    "chunk_outer_kernel", "chunk_outer_backward_kernel", "scan_output_kernel", "norm_backward_kernel",
    "value_gradient_kernel", "matrix_gradient_kernel", "over_heads_kernel",
]  # fmt: skip
RANK_4 = [pytest.param(90, id="sm_90"), pytest.param(89, id="sm_89", marks=pytest.mark.slow)]


def assert_fits(name: str, rank: int, capability: int) -> None:
    usage = compiled(name, rank, capability)
    spills = WARPGROUP_SPILLS if capability in (90, 100) else WARP_SPILLS
    assert usage.shared_bytes <= CONSUMER_SHARED_MEMORY
    assert usage.spilled_bytes <= spills.get(name, (0, 0))[rank == 4], usage


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("name", list(kernels(1)))
def test_the_kernel_fits_a_consumer_gpu_and_spills_no_more_than_recorded(name, capability):
    assert_fits(name, 1, capability)


def test_the_sums_that_end_where_a_packed_sequence_does_compile_without_spills():
    assert compiled("phase_backward_kernel", 1, 90, packed=True).spilled_bytes == 0


@pytest.mark.parametrize("capability", RANK_4)
@pytest.mark.parametrize("name", MATRIX_KERNELS)
def test_rank_4_fits_a_consumer_gpu_too(name, capability):
    assert_fits(name, 4, capability)
