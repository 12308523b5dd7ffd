"""The public scan: refuses what does not fit, counts what ran, and keeps its precision under autocast."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sigma_kernels import counters
from sigma_kernels.scan.op import mamba3_scan, mamba3_step
from sigma_kernels.scan.state import Mimo
from tests.kernels.scan_cases import Shape, make_case

SHAPE = Shape(R=2)
MIMO = make_case(SHAPE).parameters["mimo"]
STATE = make_case(SHAPE).state
WRONG_INPUTS = [
    ("x_BTHP", (2, 13, 12)),
    ("z_BTHP", (2, 13, 4, 2)),
    ("in_BTRGN", (2, 12, 2, 2, 8)),
    ("in_BTRGN", (2, 13, 2, 3, 8)),
    ("out_BTRGN", (2, 13, 1, 2, 8)),
    ("dd_dt_BTH", (2, 13, 1)),
    ("dd_a_BTH", (2, 13)),
    ("trap_BTH", (1, 13, 4)),
    ("angle_BTS", (2, 13, 5)),
    ("angle_BTS", (2, 13, 4, 3)),
]
WRONG_OPTIONS = [
    ("dt_bias_H", torch.zeros(3)),
    ("skip_H", torch.zeros(4, 1)),
    ("in_norm_N", torch.zeros(7)),
    ("out_norm_N", torch.zeros(1)),
    ("in_bias_HRN", torch.zeros(4, 1, 8)),
    ("out_bias_HRN", torch.zeros(4, 8)),
    ("y_norm_HP", torch.zeros(3)),
    ("mimo", None),
    ("mimo.z_HRP", Mimo(MIMO.x_HRP, MIMO.z_HRP[:, :1], MIMO.out_HRP)),
    ("initial_state.phase_BHS", replace(STATE, phase_BHS=STATE.phase_BHS.float())),
    ("initial_state.state_BHPN", replace(STATE, state_BHPN=STATE.state_BHPN[:1])),
    ("initial_state.key_BRHN", replace(STATE, key_BRHN=STATE.key_BRHN.mT)),
    ("initial_state.x_BHP", replace(STATE, x_BHP=STATE.x_BHP.float())),
    ("cu_seqlens", torch.tensor([0, 26], dtype=torch.int32)),
    ("valid_BT", torch.ones(2, 13)),
    ("valid_BT", torch.ones(13, 2, dtype=torch.bool)),
    ("chunk", 0),
]


@pytest.mark.parametrize("name, shape", WRONG_INPUTS, ids=str)
def test_an_input_of_the_wrong_shape_is_named(name, shape):
    case = make_case(SHAPE)
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        mamba3_scan(**case.inputs | {name: torch.zeros(shape, dtype=torch.float64)}, **case.parameters)


@pytest.mark.parametrize("name, value", WRONG_OPTIONS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(WRONG_OPTIONS)])
def test_an_option_that_does_not_fit_is_named(name, value):
    case = make_case(SHAPE)
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        mamba3_scan(**case.inputs, **case.parameters | {name.split(".")[0]: value})


@pytest.mark.parametrize("bounds", [[1, 13], [0, 12], [0, 9, 5, 13], [13]], ids=str)
def test_bounds_that_do_not_cut_the_row_are_refused(bounds):
    case = make_case(Shape(B=1))
    with pytest.raises(ValueError, match=r"^cu_seqlens\b"):
        mamba3_scan(**case.inputs, **case.parameters, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))


def test_step_names_what_does_not_fit():
    case = make_case(SHAPE)
    inputs = case.slice(slice(None), 0)
    with pytest.raises(ValueError, match=r"^z_BHP\b"):
        mamba3_step(case.state, inputs[0], inputs[1][:, :1], *inputs[2:], **case.parameters)
    with pytest.raises(ValueError, match=r"^state\.key_BRHN\b"):
        mamba3_step(replace(case.state, key_BRHN=case.state.key_BRHN[:, :1]), *inputs, **case.parameters)
    with pytest.raises(ValueError, match=r"^valid_B\b"):
        mamba3_step(case.state, *inputs, **case.parameters, valid_B=torch.ones(3, dtype=torch.bool))


def test_each_execution_is_counted_where_it_happens():
    case = make_case(SHAPE)
    mamba3_scan(**case.inputs, **case.parameters)
    assert counters.snapshot() == {"scan.forward": 1, "scan.use_reference": 1}
    case.inputs["x_BTHP"].requires_grad_()
    y, state = mamba3_scan(**case.inputs, **case.parameters, return_final_state=True)
    assert counters.snapshot() == {"scan.forward": 2, "scan.use_reference": 2}
    y.sum().backward()
    assert counters.snapshot() == {"scan.backward": 1, "scan.forward": 2, "scan.use_reference": 2}
    mamba3_step(state, *case.slice(slice(None), 0), **case.parameters)
    assert counters.get("scan.step") == 1


@pytest.mark.parametrize("mode", ["plain", "from a state", "packed"])
def test_autocast_changes_nothing_inside_the_scan_forward_or_backward(mode):
    case = make_case(Shape(B=1, R=2), torch.float32)
    options = {}
    if mode == "from a state":
        options["initial_state"] = case.state
    if mode == "packed":
        options["cu_seqlens"] = torch.tensor([0, 5, 13], dtype=torch.int32)
    leaves = list((case.leaves() | (case.state_leaves() if mode == "from a state" else {})).values())
    for leaf in leaves:
        leaf.requires_grad_()
    plain = mamba3_scan(**case.inputs, **case.parameters, **options)
    grads = torch.autograd.grad(plain.sum(), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mamba3_scan(**case.inputs, **case.parameters, **options)
        cast_grads = torch.autograd.grad(cast.sum(), leaves)
    assert torch.equal(cast, plain)
    assert cast.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(cast_grads, grads, strict=True))


def test_gradients_are_the_same_under_activation_checkpointing():
    case = make_case(SHAPE)
    leaves = [leaf.requires_grad_() for leaf in case.leaves().values()]
    plain = mamba3_scan(**case.inputs, **case.parameters)
    saved = checkpoint(lambda: mamba3_scan(**case.inputs, **case.parameters), use_reentrant=False)
    for got, want in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (saved, plain)), strict=True):
        assert torch.equal(got, want)


def test_bf16_inputs_lose_only_the_rounding_of_the_output():
    case = make_case(SHAPE, torch.bfloat16)
    y = mamba3_scan(**case.inputs, **case.parameters)
    for name, value in case.leaves().items():
        if name in case.inputs:
            case.inputs[name] = value.double()
    parameters = {
        name: Mimo(*(t.double() for t in vars(value).values())) if isinstance(value, Mimo) else value
        for name, value in case.parameters.items()
    }
    parameters = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in parameters.items()}
    exact = mamba3_scan(**case.inputs, **parameters)
    error = (y.double() - exact).norm() / exact.norm()
    assert error < 3e-3  # bf16 keeps 8 bits: 2**-9 relative at most, half of it on average
