"""A run with a tokenizer of one's own: it keeps a copy, continues with it, and refuses another one."""

import pytest

from sigma.build import build_trainer
from sigma.config.parse import parse
from sigma.config.presets import resolve_parsed
from sigma.config.resolved import continue_run
from sigma.data.tokenizer import load_tokenizer, train_bpe
from sigma.train.verify_checkpoint import IncompatibleCheckpointError
from sigma_app.generate import complete

TEXTS = ["the cat sat on the mat and the dog sat on the log", "other words, quite other ones, are there"]
SIZES = (
    "--device=cpu --d-model=16 --n-layers=2 --mamba-ratio=1 --ssm-state=8 --ssm-head-dim=8 --mimo-rank=2 "
    "--ssm-chunk=16 --n-heads=2 --attention-head-dim=8 --kv-latent-dim=8 --d-ff=8 --n-routed-experts=4 --moe-top-k=2 "
    "--seq-len=24 --batch-size=4 --micro-batch-size=2 --eval-interval=0 --sample-interval=0 "
    "--sample-tokens=3 --output-dir=run"
)


@pytest.fixture
def train(tmp_path, in_this_process):
    """Start the run with more flags, as the command line does, up to its end."""

    def start(*flags):
        parsed = resolve_parsed(continue_run(parse([*SIZES.split(), *flags], cwd=tmp_path)), None)
        build_trainer(parsed.config, parsed.origins).run()
        return parsed.config

    return start


def test_a_run_keeps_its_tokenizer_continues_with_it_and_refuses_another(tmp_path, train):
    original, other, run_dir = tmp_path / "mine.json", tmp_path / "other.json", tmp_path / "run"
    original.write_text(train_bpe(TEXTS[:1], 280), "utf-8")
    other.write_text(train_bpe(TEXTS[1:], 280), "utf-8")
    tokenizer = load_tokenizer(original)
    train("--tokenizer=mine.json", "--steps=2")
    original.unlink()

    assert (run_dir / "tokenizer.json").read_text("utf-8") == tokenizer.content
    assert "--tokenizer tokenizer.json\n" in (run_dir / "resolved_args.txt").read_text()
    assert complete(run_dir, "the cat", tokens=4, temperature=0, top_k=0, seed=0, device="cpu").startswith("the cat")

    assert train("--steps=3").data.tokenizer == run_dir / "tokenizer.json"
    with pytest.raises(IncompatibleCheckpointError, match=rf"--tokenizer: {tokenizer.name} in the checkpoint, sha256:"):
        train("--steps=4", "--tokenizer=other.json")
