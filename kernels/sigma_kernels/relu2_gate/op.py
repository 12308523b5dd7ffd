"""The public ReLU^2 gate: checks the shape, asks dispatch, and counts."""

from __future__ import annotations

from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.counted import count_reference
from sigma_kernels.relu2_gate.reference import relu2_gate_reference
from sigma_kernels.row_tiles import FLOATS


def relu2_gate(up: Tensor) -> Tensor:
    """relu(g)^2 * u for the halves (g, u) of the last axis; the Triton kernel on CUDA, the reference elsewhere.

    Counts `relu2_gate.forward` and `relu2_gate.backward`. The bits are those of the reference, in the gradient too.
    The backward of the Triton path keeps `up` and nothing else. fp64 has no kernel.

    Args:
        up: `[..., 2 F]`, F >= 1, any strides.

    Returns:
        `[..., F]` in the dtype of `up`, computed in fp32 (fp64 for fp64) and rounded once.

    Raises:
        ValueError: the last axis is empty or does not have two halves.
    """
    if up.ndim == 0 or up.shape[-1] == 0 or up.shape[-1] % 2:
        raise ValueError(f"relu2_gate: the last axis of up must have two halves, up is {tuple(up.shape)}")
    limit = None if up.dtype in FLOATS else f"the kernel does not take {up.dtype}"
    if dispatch.use_triton("relu2_gate", up, limit=limit):
        from sigma_kernels.relu2_gate.kernel import Relu2GateFn

        return Relu2GateFn.apply(up)
    return count_reference("relu2_gate", relu2_gate_reference(up))[0]
