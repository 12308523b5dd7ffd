"""With an empty cache a start compiles all that its first steps launch; with a kept one nothing, and rehearses none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sigma.train.loop import Trainer
from tests.e2e.tiny_trainer import LEAN, build
from tests.kernels.fake_gpu import forget_kernels
from tests.unit.train.test_rehearsal import take

pytestmark = pytest.mark.gpu

MODEL = {"device": "cuda", "precision": "bf16", "seq_len": 32, "n_layers": 6}
VARIANTS: list[dict[str, Any]] = [{"optimizer": "muon"}, {"optimizer": "muon", "optim_graph": False}, LEAN]


def new_process(folder: Path, **flags: Any) -> Trainer:
    """A trainer that finds no kernel loaded."""
    forget_kernels()
    return build(folder, **MODEL | flags)


def entries(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_the_first_steps_compile_and_load_nothing_more(tmp_path, flags):
    from triton import knobs

    cache = tmp_path / "cache"
    asked: list[str] = []
    with knobs.cache.scope(), knobs.runtime.scope():
        knobs.cache.dir = str(cache)
        trainer = new_process(tmp_path / "cold", **flags)
        compiled = entries(cache)
        assert trainer.startup["kernels_ahead"] > 20
        knobs.runtime.jit_cache_hook = lambda *, fn, **_: asked.append(fn.name)
        for number in (1, 2, 3):
            take(trainer, number)
        trainer.close()
        assert asked == []
        assert entries(cache) == compiled
        again = new_process(tmp_path / "kept", **flags)
        assert again.startup["kernels_ahead"] == trainer.startup["kernels_ahead"]
        assert entries(cache) == compiled
        again.close()
        assert trainer.stamp is not None
        trainer.stamp.leave()
        compiled = entries(cache)
        stamped = new_process(tmp_path / "stamped", **flags)
        assert stamped.startup["kernels_ahead"] == 0
        take(stamped, 1)
        stamped.close()
        assert asked != []
        assert entries(cache) == compiled
