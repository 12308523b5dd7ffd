"""RMSNorm as a module."""

from __future__ import annotations

import torch

from sigma.model.norm import RMSNorm


def test_norm_has_unit_mean_square_times_the_gain_and_carries_the_residual():
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(16, eps=1e-12)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(3))
    with torch.no_grad():
        norm.weight.fill_(3)
    y, total = norm(x, residual=2 * x)
    assert torch.equal(total, 3 * x)
    torch.testing.assert_close(y, 3 * x / x.square().mean(-1, keepdim=True).sqrt())
