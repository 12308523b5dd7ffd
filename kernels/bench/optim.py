"""Side-by-side benchmark of the optimizers: `--tier S` trains on the CPU, `--tier A` on a GPU, `--report` writes.

What is registered here was fixed before the first run: contenders, grids, seeds, the rules for more runs. Every run is
one row of optim_runs.jsonl, failures too. Started again, the program does what is missing; `--budget-s` stops it
between two runs. The rules, in their order:

1. Grid: every contender at every rate and decay of its tier, seed 0.
2. Edge: when a contender's best rate is at the edge of what it has tried, the next one (a factor of 2) is run with the
   best decay, at most EXTENSIONS times.
3. Seeds: every contender at its own best cell on the further seeds. Runs of one seed share weights and batches.
4. Placebos run at the best cell of what they imitate, on all seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optim_report import write_report

LOG = Path(__file__).with_name("optim_runs.jsonl")
EXTENSIONS = 3
CREDIT = "--optimizer c3o --c3o-credit-enabled --c3o-credit-gain 0.1"

CONTENDERS: dict[str, str] = {
    "adamw": "--optimizer adamw",
    "muon-torch": "--optimizer muon --muon-polynomial newton_schulz",
    "muon": "--optimizer muon",
    "normuon": "--optimizer normuon",
    "adamuon": "--optimizer adamuon",
    "soapmuon": "--optimizer soapmuon",
    "gnprox": "--optimizer gnprox",
    "c3o": CREDIT,
    "c3o-soapmuon": f"{CREDIT} --c3o-base soapmuon",
}
"""Name -> flags. muon-torch is torch.optim.Muon's update (match_rms_adamw)."""

PLACEBOS: dict[str, tuple[str, str]] = {
    "normuon-random-shares": ("normuon", "--optimizer normuon"),
    "gnprox-text-labels": ("gnprox", "--optimizer gnprox --gn-labels text"),
}
"""Name -> (whose best cell it takes, flags). Random shares: log s from N(0, SHARE_SPREAD^2), total kept."""
SHARE_SPREAD = 0.3


@dataclass(frozen=True)
class Tier:
    """A model, a budget of tokens, and the grid of what is tried on it."""

    flags: str
    rates: tuple[float, ...]
    decays: tuple[float, ...]
    seeds: tuple[int, ...]
    credit: str
    """Intervals of c3o that give it a verdict within the budget."""


COMMON = "--warmup-share 0.05 --decay-share 0.5 --adam-beta1 0.8 --adam-beta2 0.95 --adam-eps 1e-10 --eval-interval 0"
TIERS = {
    "S": Tier(
        flags=(
            "--device cpu --tokenizer bytes --d-model 48 --n-layers 2 --mamba-ratio 1 --attention-ratio 1 --d-ff 48"
            " --n-routed-experts 4 --moe-top-k 2 --n-heads 2 --attention-head-dim 16 --kv-latent-dim 24 --ssm-state 16"
            " --ssm-head-dim 16 --mimo-rank 2 --seq-len 64 --batch-size 16 --micro-batch-size 16 --steps 100"
            " --adam-lr 5e-3 --val-max-tokens 16384 --source-prefetch 0 --no-instant-enabled"
        ),
        rates=(1e-2, 2e-2, 4e-2),
        decays=(0.1,),
        seeds=(0, 1, 2),
        credit="--c3o-probe-interval 2 --c3o-audit-interval 4",
    ),
    "A": Tier(
        flags=(
            "--device cuda --tokenizer bpe8k --d-model 256 --n-layers 6 --mamba-ratio 2 --attention-ratio 1 --d-ff 256"
            " --n-routed-experts 8 --moe-top-k 2 --n-heads 4 --attention-head-dim 64 --kv-latent-dim 128"
            " --ssm-state 64 --mimo-rank 2 --seq-len 1024 --batch-size 64 --micro-batch-size 64 --steps 800"
            " --adam-lr 3e-3 --val-max-tokens 524288 --source-prefetch 8"
        ),
        rates=(2e-3, 4e-3, 8e-3),
        decays=(0.05, 0.1, 0.2),
        seeds=(0, 1, 2, 3, 4),
        credit="--c3o-probe-interval 8 --c3o-audit-interval 16",
    ),
}
"""S: 0.11 M parameters, 102 k tokens. A: 13.1 M beside the embedding, 65,536 tokens a step, 52.4 M tokens, which are
about 6 epochs of the bundled corpus."""


@dataclass(frozen=True)
class Run:
    """One training run of the plan."""

    tier: str
    contender: str
    lr: float
    decay: float
    seed: int

    @property
    def flags(self) -> str:
        """All flags of the run."""
        tier, name = TIERS[self.tier], self.contender
        own = PLACEBOS[name][1] if name in PLACEBOS else CONTENDERS[name]
        credit = tier.credit if "c3o" in own else ""
        return f"{tier.flags} {COMMON} {own} {credit} --lr {self.lr} --weight-decay {self.decay} --seed {self.seed}"


Rows = dict[Run, dict[str, Any]]


def missing(tier: str, rows: Rows, only: str | None = None) -> Iterator[Run]:
    """The runs that the rules ask for and that have no row, in the order of the rules."""
    names = [name for name in CONTENDERS if only is None or name == only]
    for name in names:
        yield from (run for run in grid(tier, name) if run not in rows)
    for name in names:
        if (run := beyond_edge(tier, name, rows)) is not None:
            yield run
    for name in names:
        if (best := best_cell(tier, name, rows)) is not None and beyond_edge(tier, name, rows) is None:
            yield from (run for run in seeds_of(tier, name, best) if run not in rows)
    for name, (imitated, _) in PLACEBOS.items():
        if only in (None, name) and (best := best_cell(tier, imitated, rows)) is not None:
            yield from (run for run in seeds_of(tier, name, best) if run not in rows)


def grid(tier: str, name: str) -> list[Run]:
    """Rule 1."""
    t = TIERS[tier]
    return [Run(tier, name, lr, decay, t.seeds[0]) for decay in t.decays for lr in t.rates]


def seeds_of(tier: str, name: str, best: Run) -> list[Run]:
    """Rules 3 and 4."""
    return [Run(tier, name, best.lr, best.decay, seed) for seed in TIERS[tier].seeds]


def best_cell(tier: str, name: str, rows: Rows) -> Run | None:
    """The cell with the lowest validation loss on the first seed, once the grid is complete."""
    if any(run not in rows for run in grid(tier, name)):
        return None
    own = [run for run in rows if (run.tier, run.contender, run.seed) == (tier, name, TIERS[tier].seeds[0])]
    return min(own, key=lambda run: loss_of(rows[run]))


def beyond_edge(tier: str, name: str, rows: Rows) -> Run | None:
    """Rule 2."""
    best = best_cell(tier, name, rows)
    if best is None:
        return None
    seed = TIERS[tier].seeds[0]
    tried = {run.lr for run in rows if (run.tier, run.contender, run.seed) == (tier, name, seed)}
    if len(tried) >= len(TIERS[tier].rates) + EXTENSIONS or min(tried) < best.lr < max(tried):
        return None
    beyond = best.lr * 2 if best.lr == max(tried) else best.lr / 2
    return Run(tier, name, beyond, best.decay, seed)


def loss_of(row: dict[str, Any]) -> float:
    """The primary metric; a run that failed is worse than any other."""
    return row["val_loss"] if row["status"] == "ok" else math.inf


def read_log(path: Path = LOG) -> Rows:
    """Every run that has a row; the last one counts."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {Run(**row["run"]): row for row in map(json.loads, lines)}


def main(arguments: list[str]) -> int:
    """Returns 0 when nothing is missing any more, 1 when time ran out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="S")
    parser.add_argument("--only", choices=[*CONTENDERS, *PLACEBOS], help="one contender")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="start no run after so many seconds")
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--plan", action="store_true", help="print what is missing now and stop")
    parser.add_argument("--report", action="store_true", help="write docs/optimizers.md from the log and stop")
    chosen = parser.parse_args(arguments)
    if chosen.report:
        write_report(list(read_log(chosen.log).values()))
        return 0
    started, longest = time.monotonic(), 0.0
    while (run := next(missing(chosen.tier, read_log(chosen.log), chosen.only), None)) is not None:
        if chosen.plan:
            for planned in missing(chosen.tier, read_log(chosen.log), chosen.only):
                print(planned)
            return 1
        if time.monotonic() - started + longest > chosen.budget_s:
            return 1
        from optim_run import execute

        before = time.monotonic()
        row = {"run": asdict(run), **execute(run.flags, random_shares=SHARE_SPREAD * ("random" in run.contender))}
        longest = max(longest, time.monotonic() - before)
        with chosen.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{run}: {row['status']} {row.get('val_loss')} in {row['seconds']:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
