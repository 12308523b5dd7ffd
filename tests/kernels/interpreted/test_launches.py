"""Settings reach the kernels and change no result; loops with and without pipelines agree."""

import pytest
import torch

from sigma_kernels import counters, pipelining, tuned
from sigma_kernels.orthogonalise import kernel
from sigma_kernels.orthogonalise.pipelined import pipelined_loop
from sigma_kernels.orthogonalise.tunable import orthogonalise_tunable
from sigma_kernels.scan import pipelined, triton_scan
from sigma_kernels.scan.pipelined import pipelined_loops
from sigma_kernels.scan.tunable import scan_tunable
from tests.kernels.orthogonalise_cases import relative

CPU = torch.device("cpu")


@pytest.fixture
def steps_seen(monkeypatch):
    """Steps of a chunk of each scan."""
    seen, launch = [], triton_scan.launch_forward
    monkeypatch.setattr(triton_scan, "launch_forward", lambda n, given: (seen.append(n.steps), launch(n, given))[1])
    return seen


@pytest.mark.parametrize("rank, norm", [(1, False), (2, True)])
def test_a_setting_reaches_the_scan_and_changes_no_result(rank, norm, steps_seen):
    shape = (1, 34, 1, 16)
    tunable = scan_tunable(shape, state=16, rank=rank, groups=1, pairs=4, norm=norm, dtype=torch.float32, device=CPU)
    results = []
    for rows in tunable.candidates["rows"][:2]:
        with tuned.using("scan", tunable.key, tunable.present | {"rows": rows}):
            results.append(tunable.call())
    assert steps_seen == [rows // rank for rows in tunable.candidates["rows"][:2]]
    for first, second in zip(*results, strict=True):
        assert relative(second.detach(), first.detach()) <= 1e-4


TILE = {"BLOCK": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}


BY = [{"DESCRIPTORS": False}, {"DESCRIPTORS": True, "RATIO": 1}, {"DESCRIPTORS": True, "RATIO": 2}]


@pytest.mark.parametrize("tile", [TILE | by for by in BY], ids=["pointers", "squares", "wide"])
def test_a_tile_reaches_the_symmetric_product_and_changes_no_result(tile, monkeypatch):
    tunable = orthogonalise_tunable(1, 96, 64, CPU)
    launched = []
    monkeypatch.setattr(kernel, "stages", lambda wanted: (launched.append(wanted), wanted)[1])
    expected = tunable.call()
    with tuned.using("orthogonalise", tunable.key, {"tile": tile}):
        results = tunable.call()
    assert launched == [3, 3, 2, 2]
    assert counters.get("orthogonalise.by_pointers") == (2 if tile["DESCRIPTORS"] else 4)
    assert counters.get("orthogonalise.by_descriptors") == (2 if tile["DESCRIPTORS"] else 0)
    for found, good in zip(results, expected, strict=True):
        assert relative(found, good) <= 1e-3


@pytest.mark.parametrize("sizes", [{}, {"state": 16, "rank": 2, "pairs": 0}], ids=["siso", "mimo that does not turn"])
def test_the_self_test_of_pipelined_loops_passes_for_sound_ones(sizes):
    small = {"head_size": 16, "state": 32, "pairs": 8} | sizes
    results = pipelined_loops(CPU, **small)
    assert all(torch.isfinite(t.float()).all() and (t.float().abs().sum() > 0 or t.numel() == 0) for t in results)
    ops = {"scan": lambda: pipelined_loops(CPU, **small), "orthogonalise": lambda: pipelined_loop(CPU)}
    assert pipelining.check(ops) == []


def test_the_self_test_of_a_model_that_is_too_large_for_the_kernels_takes_the_largest_sizes(monkeypatch):
    def stop(n, given):
        raise LookupError(n.P, n.N, n.R, n.S)

    monkeypatch.setattr(pipelined, "make_phases", stop)
    with pytest.raises(LookupError) as stopped:
        pipelined_loops(CPU, head_size=256, state=1024, rank=1, pairs=512)
    assert stopped.value.args == (128, 256, 1, 128)
