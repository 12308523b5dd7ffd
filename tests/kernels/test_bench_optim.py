"""The benchmark of the optimizers times the parameters of the presets, and its floors are the counted operations."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.presets import resolve
from sigma.config.root import RunConfig
from sigma.config.train import TrainSection
from sigma.data.tokenizer import load_tokenizer
from sigma.model.configuration import sigma_config_from
from sigma.model.modeling import SigmaForCausalLM
from sigma.optim.build import build_optimizers
from sigma_kernels import counters, dispatch

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"


@pytest.fixture
def module(monkeypatch):
    """Import a module of kernels/bench."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.mark.parametrize("preset", ["small", "large"])
def test_the_shapes_are_those_of_the_preset(module, preset):
    config = RunConfig()
    config = resolve(replace(config, run=replace(config.run, preset=preset, device="cpu")), None)
    with torch.device("meta"):
        model = SigmaForCausalLM(sigma_config_from(config, load_tokenizer("bpe8k").vocab_size))
    roles = {n: r if isinstance(r, str) else (r[0], tuple(r[1])) for n, r in model.parameter_roles().items()}
    want = Counter((roles[name], tuple(p.shape)) for name, p in model.named_parameters())
    listed = module("optim_shapes").SHAPES[preset]
    assert {(role, shape): count for role, shape, count in listed} == dict(want)


def test_logical_matrices_are_counted_once(module):
    shapes = module("optim_shapes")
    hidden = sum(r * c * k for (r, c), k in shapes.matrices_of("small").items())
    rest = {"embedding", "router", "vector"}
    others = sum(torch.Size(s).numel() * k for role, s, k in shapes.SHAPES["small"] if role in rest)
    assert hidden + others == shapes.parameters_of("small") == 107_797_536
    assert shapes.matrices_of("small")[512, 512] == 12 * 8 * 3 + 12 * 2 + 15


@pytest.mark.parametrize("rows, columns", [(512, 512), (512, 2048), (2048, 512)])
@pytest.mark.parametrize("iterations", [1, 2, 3, 5, 7])
def test_the_floor_counts_the_products_that_the_op_runs(module, rows, columns, iterations):
    from sigma_kernels.orthogonalise import reference

    counted = {"direct": 0, "gram": 0}

    class Matrix:
        """The shape of a matrix; products are counted, symmetric ones at half their cost."""

        def __init__(self, form: str, rows: int, columns: int) -> None:
            self.form, self.rows, self.columns = form, rows, columns

        def times(self, other: Matrix, *, symmetric: bool) -> Matrix:
            counted[self.form] += (1 if symmetric else 2) * self.rows * self.columns * other.columns
            return Matrix(self.form, self.rows, other.columns)

    class Counting:
        def gram(self, x: Matrix) -> Matrix:
            return x.times(Matrix(x.form, x.columns, x.rows), symmetric=True)

        def symmetric(self, left: Matrix, right: Matrix) -> Matrix:
            return left.times(right, symmetric=True)

        def quadratic(self, gram: Matrix, triple: object) -> Matrix:
            return gram.times(gram, symmetric=True)

        def apply(self, x: Matrix, triple: object, out: object = None) -> Matrix:
            return self.multiply(self.quadratic(self.gram(x), triple), x)

        def multiply(self, left: Matrix, x: Matrix, out: object = None) -> Matrix:
            return left.times(x, symmetric=False)

    n, m = min(rows, columns), max(rows, columns)
    for form, run in (("direct", reference.direct_form), ("gram", reference.gram_form)):
        run(Matrix(form, n, m), reference.polynomials(iterations), Counting())
    assert module("floors").orthogonalise_flops(rows, columns, iterations) == min(counted.values())


def test_bytes_of_a_step_by_hand(module):
    step = module("ops.optim_step")
    n, rest = (
        107_797_536,
        107_797_536 - sum(r * c * k for (r, c), k in module("optim_shapes").matrices_of("small").items()),
    )
    by_name = {name: step.bytes_of("small", provider) for name, provider in step.PROVIDERS.items()}
    assert by_name["torch-adamw"] == 28 * n
    assert by_name["normuon"] == 24 * (n - rest) + 28 * rest
    assert by_name["normuon-lean-graph"] == 14 * (n - rest) + 28 * rest
    matrix = module("ops.matrix_step")
    assert (matrix.bytes_of("forward", "fp32"), matrix.bytes_of("backward", "fp32")) == (14, 10)
    assert matrix.bytes_of("forward", "int8 momentum, bf16+8 weights") == 6
    assert matrix.bytes_of("backward", "int8 momentum, bf16+8 weights") == 8


def test_every_orthogonalisation_is_timed_in_turn_with_a_large_product(module):
    op, size = module("ops.orthogonalise"), module("floors").MATRIX
    for (count, rows, columns), (large, *others) in zip(op.SHAPES, op.cases(), strict=True):
        name = f"{count}x{rows}x{columns}"
        assert (large.provider, large.shape) == ("product", f"{size}x{size}x{size} beside {name}")
        assert large.work[0].flops == 2 * size**3
        assert [case.provider for case in others] == list(op.PROVIDERS)
        assert {case.shape for case in others} == {name}
    factors = torch.randn(2, 4, 4).bfloat16()
    product = op.product(factors)()
    assert product.dtype == torch.float16
    torch.testing.assert_close(product, factors[0].half() @ factors[1].half())


def test_the_eager_providers_take_the_reference(module):
    batch = torch.randn(2, 20, 30)
    orthogonalised = module("ops.orthogonalise").PROVIDERS["eager"](batch)
    with dispatch.using("triton"):  # which raises here where it is asked
        orthogonalised()
        assert module("ops.matrix_step").PROVIDERS["eager"](dispatch.backend)() == "reference"
    assert counters.snapshot()["orthogonalise.use_reference"] == 1


@pytest.mark.parametrize("name", ["normuon", "normuon-lean-graph", "adamuon-graph", "adamw-graph"])
def test_the_bytes_that_an_optimizer_keeps_are_those_after_a_step(module, name):
    state, provider = module("optim_state"), module("ops.optim_step").PROVIDERS[name]
    shapes = {"a": ((3, 8, 16), "experts"), "b": ((12, 16), ("fused", (8, 4))), "c": ((40, 16), "embedding")}
    roles = {key: role for key, (_, role) in shapes.items()}

    def made(device: str) -> dict[str, torch.nn.Parameter]:
        return {key: torch.nn.Parameter(torch.ones(shape, device=device)) for key, (shape, _) in shapes.items()}

    parameters = made("cpu")
    train = TrainSection(lr=1e-3, adam_lr=1e-3, optimizer=provider.optimizer)
    optimizers = build_optimizers(parameters, roles, train, provider.optim, CurvatureSection(), C3OSection())
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    optimizers.step(torch.zeros(()))
    want = state.bytes_of(parameters.values()), state.bytes_of(optimizers.tensors().values())
    assert state.kept(made("meta"), roles, provider.optimizer, provider.optim) == want
