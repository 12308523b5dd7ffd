"""What the tests of the cross-entropy share: logits with labels, one forward and backward, the float64 formula."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import cross_entropy_reference


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, *, spread: float = 3.0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[..., V]`, labels with the first, the last, and an ignored one, gradients of the losses."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, generator=generator).mul(spread).to(dtype)
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    flat = labels.view(-1)
    flat[:3] = torch.tensor([0, shape[-1] - 1, -100])[: len(flat)]
    return logits.to(device), labels.to(device), torch.randn(labels.shape, generator=generator).to(device)


def run(logits: Tensor, labels: Tensor, dnats: Tensor) -> dict[str, Tensor]:
    """Losses and the gradient of the logits."""
    leaf = logits.detach().requires_grad_()
    nats = cross_entropy(leaf, labels)
    (dlogits,) = torch.autograd.grad(nats, leaf, dnats.to(nats.dtype))
    return {"nats": nats.detach(), "dlogits": dlogits}


def exact(logits: Tensor, labels: Tensor, dnats: Tensor) -> dict[str, Tensor]:
    """The same by the reference in fp64 on the CPU."""
    leaf = logits.detach().double().cpu().requires_grad_()
    nats = cross_entropy_reference(leaf, labels.cpu())
    (dlogits,) = torch.autograd.grad(nats, leaf, dnats.double().cpu())
    return {"nats": nats.detach(), "dlogits": dlogits}


def assert_right(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Losses within 1e-5 of their size or of 1, gradients within their own rounding."""
    got, want = run(*inputs), exact(*inputs)
    assert got["nats"].dtype == torch.float32
    assert got["dlogits"].dtype == inputs[0].dtype
    torch.testing.assert_close(got["nats"].cpu().double(), want["nats"], rtol=1e-5, atol=1e-5)
    rounding = torch.finfo(inputs[0].dtype).eps
    torch.testing.assert_close(got["dlogits"].cpu().double(), want["dlogits"], rtol=max(rounding, 1e-5), atol=1e-6)
