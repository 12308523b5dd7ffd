"""What the checkpoint tests share: a tiny state with every odd kind of tensor, and ways to damage it."""

import torch

from sigma.train.checkpoint import CheckpointStore

IDENTITY = {"model": {"d_model": 8}, "train": {"optimizer": "adamw"}}


def groups(step):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 5, generator=generator)
    model = {
        "embed.weight": weight,
        "head.weight": weight,
        "scale": torch.tensor(1.5 + step),
        "none": torch.zeros(0, 4),
    }
    optim = {
        "embed.weight.exp_avg": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "embed.weight.step": torch.tensor(step, dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
        "strided": torch.arange(6.0).reshape(2, 3).t(),
    }
    return {"model": model, "optim": optim}


def items(step):
    return {"step": step, "cursor": {"shard": 1, "row": 7 * step}, "ema": 0.1 * step, "text": "é"}


def save(store, step, score=None):
    return store.save(step, tokens=100 * step, items=items(step), groups=groups(step), score=score)


def make_store(run_dir, **options):
    return CheckpointStore(run_dir, IDENTITY, **options)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def folder(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:09d}"


def kinds(events):
    return [(event.kind, event.checkpoint) for event in events]


def flip(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
