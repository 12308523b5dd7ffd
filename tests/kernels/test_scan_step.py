"""The decode step without a GPU: a bf16 state on the reference, and the Triton kernel's size on every architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.scan.op import mamba3_scan, mamba3_step
from tests.kernels.compile_only import EVERY_CAPABILITY, compile_kernel
from tests.kernels.scan_cases import Shape, make_case
from tests.kernels.step_cases import assert_step, step_with

# P, N, R, dtype of the state, norm before the gate; bytes of shared memory, spilled bytes (8 by Triton 3.6 on sm_80)
PROGRAMS = [
    (64, 128, 1, torch.bfloat16, False, 1024, 8),
    (64, 64, 4, torch.bfloat16, False, 1024, 0),
    (50, 100, 1, torch.float32, False, 4096, 0),
    (128, 256, 4, torch.float32, True, 4096, 0),
]


@pytest.mark.parametrize("shape", [Shape(), Shape(R=2, y_norm=True)], ids=str)
def test_reference_rounds_a_bf16_state_once_after_y_is_read(shape):
    case = make_case(shape, torch.float32)
    case.state = replace(case.state, state_BHPN=case.state.state_BHPN.bfloat16())
    got, want = step_with("reference", case), step_with("reference", case, exact=True)
    assert got["state_BHPN"].dtype == torch.bfloat16
    assert got["y"].dtype == torch.float32
    assert_step(got, want)


def test_a_bf16_state_of_a_padded_row_stays_bit_for_bit():
    case = make_case(Shape(), torch.float32)
    case.state = replace(case.state, state_BHPN=case.state.state_BHPN.bfloat16())
    got = step_with("reference", case, valid_B=torch.tensor([True, False]))
    assert torch.equal(got["state_BHPN"][1], case.state.state_BHPN[1])


def test_a_scan_continues_from_a_bf16_state():
    case = make_case(Shape(), torch.float32)
    half = replace(case.state, state_BHPN=case.state.state_BHPN.bfloat16())
    same = replace(case.state, state_BHPN=half.state_BHPN.float())
    got, want = (mamba3_scan(**case.inputs, **case.parameters, initial_state=s) for s in (half, same))
    assert torch.equal(got, want)


@pytest.mark.parametrize("part", ["key_BRHN", "x_BHP"])
def test_the_small_parts_of_a_state_are_refused_in_bf16(part):
    case = make_case(Shape(), torch.float32)
    state = replace(case.state, **{part: getattr(case.state, part).bfloat16()})
    with pytest.raises(ValueError, match=rf"^state\.{part}\b"):
        mamba3_step(state, *case.slice(slice(None), 0), **case.parameters)


def test_a_bf16_state_is_refused_for_fp64_inputs():
    case = make_case(Shape())
    with pytest.raises(ValueError, match=r"^state\.state_BHPN\b"):
        mamba3_step(
            replace(case.state, state_BHPN=case.state.state_BHPN.bfloat16()),
            *case.slice(slice(None), 0),
            **case.parameters,
        )


def test_demanding_triton_on_the_cpu_is_an_error_that_says_why():
    case = make_case(Shape(R=2))
    dispatch.set_backend("triton")
    with pytest.raises(dispatch.BackendError, match=r"scan\.step.*(not on a CUDA device|not installed)"):
        mamba3_step(case.state, *case.slice(slice(None), 0), **case.parameters)
    assert counters.get("scan.step.use_triton") == 0


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: "-".join(map(str, p[:5])))
def test_the_kernel_compiles_within_its_budget(program, capability):
    kernel = pytest.importorskip("sigma_kernels.scan.step_kernel", exc_type=ImportError)
    import triton.language as tl

    head_size, size, rank, dtype, y_norm, shared_bytes, spilled_bytes = program
    tile = kernel.tile_of(head_size, size, rank, dtype)
    options = {name: tile.pop(name) for name in ("num_stages", "maxnreg")}
    state = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    learned = ["*fp32"] * 6 + ["*fp32" if rank > 1 else None] * 3 + ["*fp32" if y_norm else None]
    usage = compile_kernel(
        kernel._mamba3_step_kernel,
        ["*i32", state, "*fp32", "*fp32", *["*bf16"] * 8, "*i1" if y_norm else None, *learned, "*bf16"]
        + ["i32:16"] * 18,
        capability=capability,
        options=options,
        H=64,
        G=1,
        S=size // 4,
        ACC=tl.float32,
        **tile,
    )
    assert usage.spilled_bytes <= spilled_bytes
    assert usage.shared_bytes <= shared_bytes
    assert usage.registers * 32 * tile["num_warps"] <= 65536 // (4 if options["maxnreg"] else 1)
