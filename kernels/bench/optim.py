"""Side-by-side benchmark of the optimizers: `--tier S` trains on the CPU, B and A on a GPU; `--report` writes.

What is registered here was fixed before the first run: contenders, grids, seeds, the rules for more runs. Every run is
one row of optim_runs.jsonl, failures too. Started again, the program does what is missing; `--budget-s` starts no run
that would not end in time, `--stop-s` abandons what is under way. `--jobs N` carries out N runs at a time; their times
mean nothing then, so `--time` takes them in short runs that have the device alone. It ends with 0 when nothing is
missing, 1 when time ran out, 2 when a run was lost (its process died, or there was no memory beside the others).

The rules, in their order:

1. Grid: every contender of a tier at every rate that the tier has for it, seed 0.
2. Edge: when a contender's best rate is at the edge of what it has tried, the next one (a factor of 2) is run, at most
   EXTENSIONS times.
3. Seeds: every contender at its own best cell on the further seeds. Runs of one seed share weights and batches.
4. Placebos of a tier run at the best cell of what they imitate, on all seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from optim_jobs import DONE, OUT_OF_TIME, Limits, Pool, one_by_one
from optim_report import write_report

LOG = Path(__file__).with_name("optim_runs.jsonl")
EXTENSIONS = 3
DECAY, SEEDS = 0.1, (0, 1, 2)
CREDIT = "--optimizer c3o --c3o-credit-enabled --c3o-credit-gain 0.1"

CONTENDERS: dict[str, str] = {
    "adamw": "--optimizer adamw",
    "normuon": "--optimizer normuon",
    "c3o": CREDIT,
    "soapmuon": "--optimizer soapmuon",
    "c3o-soapmuon": f"{CREDIT} --c3o-base soapmuon",
    "gnprox": "--optimizer gnprox",
    "muon": "--optimizer muon",
    "adamuon": "--optimizer adamuon",
    "muon-torch": "--optimizer muon --muon-polynomial newton_schulz",
}
"""Name -> flags; what the documentation promises something of comes first, should time run out. muon-torch is
torch.optim.Muon's update (match_rms_adamw)."""

PLACEBOS: dict[str, tuple[str, str]] = {
    "normuon-random-shares": ("normuon", "--optimizer normuon"),
    "gnprox-text-labels": ("gnprox", "--optimizer gnprox --gn-labels text"),
}
"""Name -> (whose best cell it takes, flags). Random shares: log s from N(0, SHARE_SPREAD^2), total kept."""
SHARE_SPREAD = 0.3
TIMING_STEPS, TIMING_WARM_UP = 120, 40
"""80 steps are timed: whole intervals of all that measures now and then, each of which has passed twice before."""


@dataclass(frozen=True)
class Tier:
    """A model, a budget of tokens, and what is tried on it."""

    flags: str
    rates: tuple[float, ...]
    credit: str
    """Intervals of c3o that give it a verdict within the budget."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    placebos: tuple[str, ...] = tuple(PLACEBOS)
    own_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Rates of a contender in place of `rates`."""


COMMON = "--warmup-share 0.05 --decay-share 0.5 --adam-beta1 0.8 --adam-beta2 0.95 --adam-eps 1e-10 --eval-interval 0"
MEDIUM = (
    "--device cuda --tokenizer bpe8k --d-model 256 --n-layers 6 --mamba-ratio 2 --attention-ratio 1 --d-ff 256"
    " --n-routed-experts 8 --moe-top-k 2 --n-heads 4 --attention-head-dim 64 --kv-latent-dim 128"
    " --ssm-state 64 --mimo-rank 2 --batch-size 64 --micro-batch-size 64 --adam-lr 3e-3 --val-max-tokens 524288"
    " --source-prefetch 8"
)
TIERS = {
    "S": Tier(
        flags=(
            "--device cpu --tokenizer bytes --d-model 48 --n-layers 2 --mamba-ratio 1 --attention-ratio 1 --d-ff 48"
            " --n-routed-experts 4 --moe-top-k 2 --n-heads 2 --attention-head-dim 16 --kv-latent-dim 24 --ssm-state 16"
            " --ssm-head-dim 16 --mimo-rank 2 --seq-len 64 --batch-size 16 --micro-batch-size 16 --steps 100"
            " --adam-lr 5e-3 --val-max-tokens 16384 --source-prefetch 0 --no-instant-enabled"
        ),
        rates=(1e-2, 2e-2, 4e-2),
        credit="--c3o-probe-interval 2 --c3o-audit-interval 4",
    ),
    "B": Tier(
        flags=f"{MEDIUM} --seq-len 512 --steps 150 --no-instant-enabled",
        rates=(5e-3, 1e-2, 2e-2),
        credit="--c3o-probe-interval 4 --c3o-audit-interval 8",
    ),
    "A": Tier(
        flags=f"{MEDIUM} --seq-len 1024 --steps 800 --no-instant-enabled",
        rates=(2.5e-3, 5e-3, 1e-2),
        credit="--c3o-probe-interval 8 --c3o-audit-interval 16",
        contenders=("adamw", "normuon", "soapmuon", "c3o", "gnprox"),
        placebos=(),
        own_rates={"adamw": (6.25e-4, 1.25e-3, 2.5e-3)},
    ),
}
"""S: 0.11 M parameters, 102 k tokens. A: 13.1 M beside the embedding, 65,536 tokens a step, 52.4 M tokens, which are
about 6 epochs of the bundled corpus. B: the model of A for 4.9 M tokens, half an epoch, 32,768 a step; the whole plan
takes minutes of one H200. Before its first run A was cut to what the documentation promises something of, one decay and
three rates up to the best one of B (for adamw around it): nine contenders with three decays would take hours."""


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
    names = [name for name in TIERS[tier].contenders if only is None or name == only]
    for name in names:
        yield from (run for run in grid(tier, name) if run not in rows)
    for name in names:
        if (run := beyond_edge(tier, name, rows)) is not None:
            yield run
    for name in names:
        if (best := best_cell(tier, name, rows)) is not None and beyond_edge(tier, name, rows) is None:
            yield from (run for run in seeds_of(name, best) if run not in rows)
    for name in TIERS[tier].placebos:
        imitated, _ = PLACEBOS[name]
        if only not in (None, name) or beyond_edge(tier, imitated, rows) is not None:
            continue  # the best cell may still move
        if (best := best_cell(tier, imitated, rows)) is not None:
            yield from (run for run in seeds_of(name, best) if run not in rows)


def untimed(tier: str, rows: Rows, timings: Rows, only: str | None = None) -> Iterator[Run]:
    """The best run so far of every contender and placebo without a timing run."""
    timed = {run.contender for run in timings if run.tier == tier}
    for name in [*CONTENDERS, *PLACEBOS]:
        if name not in timed and only in (None, name) and (tried := first_seed(tier, name, rows)):
            yield min(tried, key=lambda run: loss_of(rows[run]))


def grid(tier: str, name: str) -> list[Run]:
    """Rule 1."""
    t = TIERS[tier]
    return [Run(tier, name, lr, DECAY, SEEDS[0]) for lr in t.own_rates.get(name, t.rates)]


def seeds_of(name: str, best: Run) -> list[Run]:
    """Rules 3 and 4."""
    return [replace(best, contender=name, seed=seed) for seed in SEEDS]


def best_cell(tier: str, name: str, rows: Rows) -> Run | None:
    """The cell with the lowest validation loss on the first seed, once the grid is complete."""
    if any(run not in rows for run in grid(tier, name)):
        return None
    return min(first_seed(tier, name, rows), key=lambda run: loss_of(rows[run]))


def first_seed(tier: str, name: str, rows: Rows) -> list[Run]:
    """The runs of a contender on the first seed."""
    return [run for run in rows if (run.tier, run.contender, run.seed) == (tier, name, SEEDS[0])]


def beyond_edge(tier: str, name: str, rows: Rows) -> Run | None:
    """Rule 2."""
    best = best_cell(tier, name, rows)
    if best is None:
        return None
    tried = {run.lr for run in first_seed(tier, name, rows)}
    if len(tried) >= len(grid(tier, name)) + EXTENSIONS or min(tried) < best.lr < max(tried):
        return None
    beyond = best.lr * 2 if best.lr == max(tried) else best.lr / 2
    return replace(best, lr=beyond)


def loss_of(row: dict[str, Any]) -> float:
    """The primary metric; a run that failed is worse than any other."""
    return row["val_loss"] if row["status"] == "ok" else math.inf


def read_log(path: Path = LOG, kind: str = "run") -> Rows:
    """Every run that has a row of this kind ("run", "timing"); the last one counts."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {Run(**row["run"]): row for row in map(json.loads, lines) if row.get("kind", "run") == kind}


@dataclass(frozen=True)
class Registered:
    """The plan of a tier after the rules, over its log."""

    tier: str
    only: str | None
    log: Path
    jobs: int = 1

    def missing(self) -> Iterator[Run]:
        """What the rules ask for and the log does not have."""
        return missing(self.tier, read_log(self.log), self.only)

    def arguments(self, run: Run) -> dict[str, Any]:
        """Of optim_run.execute."""
        return {"flags": run.flags, "random_shares": SHARE_SPREAD * ("random" in run.contender)}

    def record(self, run: Run, row: dict[str, Any]) -> None:
        """Append the row of a run that `jobs` could be beside."""
        row = {"run": asdict(run), "jobs": self.jobs, **row}
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(f"{run}: {row['status']} {row.get('val_loss')} in {row['seconds']:.0f} s", flush=True)


class Timings(Registered):
    """A short run of every best cell."""

    def missing(self) -> Iterator[Run]:
        """What has a row but no timing run."""
        return untimed(self.tier, read_log(self.log), read_log(self.log, "timing"), self.only)

    def arguments(self, run: Run) -> dict[str, Any]:
        """Of optim_run.execute."""
        given = super().arguments(run)
        return given | {"flags": f"{given['flags']} --steps {TIMING_STEPS}", "warm_up": TIMING_WARM_UP}

    def record(self, run: Run, row: dict[str, Any]) -> None:
        """Append a row of its own kind."""
        super().record(run, {"kind": "timing", **row})


def main(arguments: list[str]) -> int:
    """Returns 0 when nothing is missing any more, 1 when time ran out, 2 when a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, default="S")
    parser.add_argument("--only", choices=[*CONTENDERS, *PLACEBOS], help="one contender")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="start no run that would end after this")
    parser.add_argument("--stop-s", type=float, default=math.inf, help="abandon what is under way after this")
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--time", action="store_true", help="take the times of what has a row, one run after the other")
    parser.add_argument("--plan", action="store_true", help="print what is missing now and stop")
    parser.add_argument("--report", action="store_true", help="write docs/optimizers.md from the log and stop")
    chosen = parser.parse_args(arguments)
    if chosen.jobs < 1 or (chosen.time and chosen.jobs > 1):
        parser.error("--jobs is at least 1, and with --time 1: times are taken with the device alone")
    registered = TIERS[chosen.tier]
    if chosen.only not in (None, *registered.contenders, *registered.placebos):
        parser.error(f"--only {chosen.only}: tier {chosen.tier} does not run it")
    if chosen.report:
        write_report([*read_log(chosen.log).values(), *read_log(chosen.log, "timing").values()])
        return DONE
    plan = (Timings if chosen.time else Registered)(chosen.tier, chosen.only, chosen.log, chosen.jobs)
    if chosen.plan:
        planned = list(plan.missing())
        print(*planned, sep="\n", end="\n" if planned else "")
        return OUT_OF_TIME if planned else DONE
    limits = Limits(chosen.budget_s, chosen.stop_s)
    # Only another process can be stopped in the middle of a run.
    if chosen.jobs == 1 and math.isinf(chosen.stop_s):
        return one_by_one(plan, limits)
    return Pool(plan, chosen.jobs, limits).carry_out()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
