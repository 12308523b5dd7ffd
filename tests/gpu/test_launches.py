"""Launches on a GPU: the self-test of pipelined loops is quick, and a search finds what computes the same."""

import dataclasses
import time

import pytest
import torch

from sigma_app.kernel_check import check_pipelines
from sigma_kernels import pipelining, tuned
from sigma_kernels.orthogonalise.tunable import orthogonalise_tunable
from sigma_kernels.scan.tunable import scan_tunable
from sigma_kernels.tuning import Tunable, search

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
WARM_S = 0.05


def test_pipelined_loops_agree_and_a_later_time_costs_less_than_50_ms():
    assert "agree" in check_pipelines(GPU, {})
    assert min(seconds_of_a_check() for _ in range(5)) < WARM_S  # other tests may be running beside
    assert pipelining.is_on()


def seconds_of_a_check() -> float:
    begin = time.perf_counter()
    assert "agree" in check_pipelines(GPU, {})
    return time.perf_counter() - begin


def shortened(tunable: Tunable, **candidates: list) -> Tunable:
    return dataclasses.replace(tunable, candidates=candidates)


@pytest.mark.parametrize("rank", [1, 4])
def test_every_candidate_of_a_search_runs_and_computes_the_same(rank):
    scan = scan_tunable(
        (2, 512, 4, 64), state=128, rank=rank, groups=1, pairs=32, norm=True, dtype=torch.bfloat16, device=GPU
    )
    lines = []
    found = search(
        shortened(scan, rows=scan.candidates["rows"], output=[[8, None, 32], [4, 128, 64]]), say=lines.append
    )
    assert found.after_ms <= found.before_ms
    assert all(line.endswith(" ms") or line.endswith("taken") or line.endswith("now") for line in lines), lines
    assert tuned.settings("scan", scan.key) is None


def test_tiles_of_symmetric_products_are_found():
    product = orthogonalise_tunable(4, 256, 512, GPU)
    tiles = [tile for tile in product.candidates["tile"] if tile["num_stages"] == 3 and tile["BLOCK_K"] == 64]
    found = search(shortened(product, tile=tiles))
    assert found.settings["tile"] in [*tiles, product.present["tile"]]
    assert found.after_ms <= found.before_ms
