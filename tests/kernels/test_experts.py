"""Sorting by expert and the grouped products: against loops written out, values and every gradient."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.bitlinear.op import quantize_weight
from sigma_kernels.bitlinear.reference import fake_quantize_activation, fake_quantize_weight
from sigma_kernels.experts.op import combine, expert_linear, expert_matmul, sort_by_expert, why_not_grouped_mm
from sigma_kernels.experts.reference import expert_matmul_reference


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def choices(tokens: int, top_k: int, n_experts: int, seed: int = 0) -> torch.Tensor:
    """Distinct experts for every token; the last expert is never chosen."""
    scores = torch.rand(tokens, n_experts - 1, generator=torch.Generator().manual_seed(seed))
    return scores.topk(top_k, dim=-1).indices


def test_sort_is_stable_and_loses_no_pair():
    expert_TK = torch.tensor([[2, 0], [0, 2], [2, 3]])
    rows = sort_by_expert(expert_TK, 5)
    assert rows.order_M.tolist() == [1, 2, 0, 3, 4, 5]
    assert rows.token_M.tolist() == [0, 1, 0, 1, 2, 2]
    assert rows.expert_M.tolist() == [0, 0, 2, 2, 2, 3]
    assert rows.ends == [2, 2, 5, 6, 6]
    assert rows.offsets_E.dtype == torch.int32
    assert torch.equal(rows.order_M[rows.inverse_M], torch.arange(6))


@pytest.mark.parametrize("offsets", [[0, 3, 3, 7], [7, 7, 7, 7], [0, 0, 0, 7]], ids=["gaps", "first", "last"])
def test_expert_matmul_equals_the_reference_with_empty_experts(offsets):
    offsets_E = torch.tensor(offsets, dtype=torch.int32)
    g = gaussian(7, 3, seed=2)
    results = []
    for fn in (expert_matmul, expert_matmul_reference):
        x, w = gaussian(7, 5).requires_grad_(), gaussian(4, 3, 5, seed=1).requires_grad_()
        y = fn(x, w, offsets_E)
        y.backward(g)
        results.append((y.detach(), x.grad, w.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    empty = [e for e, (a, b) in enumerate(zip([0, *offsets], offsets, strict=False)) if a == b]
    assert results[0][2][empty].abs().sum() == 0


@pytest.mark.parametrize("ternary", [False, True], ids=["plain", "ternary"])
def test_gathered_gated_product_equals_a_loop_over_tokens_in_values_and_all_gradients(ternary):
    tokens, top_k, n_experts = 9, 2, 4
    expert_TK = choices(tokens, top_k, n_experts)
    rows = sort_by_expert(expert_TK, n_experts)
    g = gaussian(tokens, 3, seed=3)

    def naive(x, w, gate_TK):
        x = fake_quantize_activation(x) if ternary else x
        w = fake_quantize_weight(w) if ternary else w
        return torch.stack(
            [sum(gate_TK[t, j] * (w[expert_TK[t, j]] @ x[t]) for j in range(top_k)) for t in range(tokens)]
        )

    def grouped(x, w, gate_TK):
        codes, scale = quantize_weight(w.detach()) if ternary else (None, None)
        gate_M = gate_TK.reshape(-1)[rows.order_M]
        return combine(expert_linear(x, w, rows, gather=True, codes_ENK=codes, scale_E=scale, gate_M=gate_M), rows)

    results = []
    for fn in (grouped, naive):
        inputs = [gaussian(tokens, 5), gaussian(n_experts, 3, 5, seed=1), gaussian(tokens, top_k, seed=2).abs()]
        inputs = [t.requires_grad_() for t in inputs]
        y = fn(*inputs)
        y.backward(g)
        results.append([y.detach(), *(t.grad for t in inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_rows_already_sorted_are_read_in_place():
    rows = sort_by_expert(choices(6, 2, 4), 4)
    x_MK, w = gaussian(12, 5), gaussian(4, 3, 5, seed=1)
    got = expert_linear(x_MK, w, rows, gather=False)
    torch.testing.assert_close(got, torch.stack([w[e] @ x for e, x in zip(rows.expert_M, x_MK, strict=True)]))


def test_a_batch_without_tokens_is_legal():
    rows = sort_by_expert(torch.empty(0, 2, dtype=torch.int64), 4)
    y = expert_linear(gaussian(0, 5), gaussian(4, 3, 5), rows, gather=True)
    assert combine(y, rows).shape == (0, 3)


def test_outputs_are_not_saved_and_x_is_saved_before_it_is_copied():
    rows = sort_by_expert(choices(8, 2, 4), 4)
    x, w, gate = (
        gaussian(8, 5).requires_grad_(),
        gaussian(4, 3, 5, seed=1).requires_grad_(),
        gaussian(16).requires_grad_(),
    )
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = expert_linear(x, w, rows, gather=True, gate_M=gate)
        combine(y, rows)
    floating = {t.data_ptr() for t in saved if t.is_floating_point()}
    assert floating == {t.data_ptr() for t in (x, w, gate)}


def test_wrong_shapes_are_refused():
    rows = sort_by_expert(choices(8, 2, 4), 4)
    with pytest.raises(ValueError, match=r"must be \[8, 5\]"):
        expert_linear(gaussian(16, 5), gaussian(4, 3, 5), rows, gather=True)


def test_the_cpu_loops_and_says_why():
    x = gaussian(4, 5, dtype=torch.bfloat16)
    assert "CUDA" in (why_not_grouped_mm(x, torch.bfloat16, 8, 8) or "")
    dispatch.set_backend("reference")
    assert why_not_grouped_mm(x, torch.bfloat16, 8, 8) == "the reference was asked for"
    expert_matmul(x, gaussian(1, 3, 5, dtype=torch.bfloat16), torch.tensor([4], dtype=torch.int32))
    assert counters.get("experts.use_loop") == 1
    assert counters.get("experts.use_grouped_mm") == 0


@pytest.mark.gpu
@pytest.mark.parametrize("ternary", [False, True], ids=["plain", "ternary"])
@pytest.mark.parametrize("tokens", [5, 700])
def test_cuda_bf16_matches_the_cpu_without_waiting_for_the_device(ternary, tokens):
    top_k, n_experts, k, n = 2, 6, 40, 24
    expert_TK = choices(tokens, top_k, n_experts)

    def run(device, dtype):
        x, w = (t.to(device).requires_grad_() for t in (gaussian(tokens, k).float(), gaussian(n_experts, n, k).float()))
        gate = gaussian(tokens * top_k, seed=2).abs().float().to(device).requires_grad_()
        g = gaussian(tokens, n, seed=3).to(device, dtype)
        codes, scale = quantize_weight(w.detach()) if ternary else (None, None)
        ids = expert_TK.to(device)
        fused = device == "cuda" and torch.cuda.get_device_capability()[0] in (9, 10)
        torch.cuda.set_sync_debug_mode("error" if fused else "default")
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            rows = sort_by_expert(ids, n_experts)
            y = combine(expert_linear(x, w, rows, gather=True, codes_ENK=codes, scale_E=scale, gate_M=gate), rows)
        y.backward(g)
        torch.cuda.set_sync_debug_mode("default")
        return [t.detach().float().cpu() for t in (y, x.grad, w.grad, gate.grad)]

    for got, want in zip(run("cuda", torch.bfloat16), run("cpu", torch.float32), strict=True):
        assert ((got - want).norm() / want.norm()).item() < 1e-2
