"""What older args files say and this version does not do: accepted, ignored, and warned about once.

RETIRED is gone for good and names what stands in its place; NOT_YET comes with its system. A trailing `?` marks a
switch (no value). VALUE_CHANGES holds values of living flags, ALIASES other names of living flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Retired:
    """A flag without a field: whether it has a value, and what to tell its user."""

    name: str
    is_switch: bool
    message: str


@dataclass(frozen=True)
class ValueChange:
    """A value that stands for another one for now."""

    replacement: str
    message: str


RETIRED: dict[str, str] = {
    "checkpoint-dir": "checkpoints are in the folder checkpoints/ of --output-dir",
    "tokenizer-backend tokenizer-name": "use --tokenizer bpe8k or --tokenizer bytes",
    "prefetch-factor persistent-workers?": "use --num-workers and --source-prefetch",
    "auto-hardware-profile?": "sizes come from --preset",
    "synthetic-data?": "use --synthetic-ratio 1",
    "hf-token hf-token-env-var": "a token does not belong in a file; set the environment variable HF_TOKEN",
    "startup-hf-only-samples": "use --bootstrap-seed-batches",
    "first-batch-timeout-sec": "no batch waits longer than --source-read-timeout-sec",
    "stream-tokenize-batch-size": "use --num-workers",
    "stream-sample-prefetch": "use --source-prefetch",
    "moe-dispatch-mode": "there is one dispatch, sorted by expert, and it drops no token",
    "router-metrics-interval": "use --log-interval",
    "router-jitter-noise": "--router-balance-lr keeps the experts in use without noise",
    "commoncrawl-records-per-file commoncrawl-max-files-per-worker-cycle": "every record of every chosen file is read",
    "commoncrawl-parallel-files": "one thread reads ahead; Common Crawl bans who asks too often",
    "dropout": "there is none; --weight-decay regularises",
    "mamba-block-t mamba-block-n": "tiles are chosen for the device; the algorithm's chunk is --ssm-chunk",
    "mamba-step-scale": "the step size is learned",
    "instant-reversible-iters instant-comp-dim": "--instant-enabled recomputes exactly",
    "muon-strict-split?": "matrices go by their role; --muon-exclude-embeddings and its like decide about the rest",
    "muon-max-orthogonalized-dim": "matrices of every size are orthogonalised",
    "no-amp?": "use --precision fp32",
    "moe-gate-precision": "the router always computes in 32 bits",
    "metrics-ema-beta": "metrics.jsonl holds the raw loss beside loss_ema",
    "strict-runtime-audit? strict-feature-usage?": "every run checks its counters",
    "require-unsloth-trl-patch?": "no library is patched",
    "startup-meta-ramp-steps startup-ttrl-interval-multiplier startup-meta-real-data-buffer-steps":
        "features say themselves when they are first due",
    "perf-profile-enable? perf-warmup-steps perf-measure-steps perf-profiler-steps perf-report-dir":
        "every row of metrics.jsonl holds the phase times",
    "perf-device-time-mode perf-sync-boundaries?": "phase times come from device events",
    "torch-compile-backend torch-compile-mode torch-compile-dynamic? torch-compile-fullgraph?":
        "use --torch-compile or --no-torch-compile",
    "diff-attention-lambda-min diff-attention-lambda-max":
        "the weight is bounded by its own form; use --diff-attention-lambda-init",
    "rib-confidence-weight": "use --rib-info-weight and --rib-collapse-penalty",
    "verifier-timeout-ms verifier-eval-every": "it never had an effect",
    "grpo-num-generations self-improver-frontier-alpha": "it never had an effect",
    "massive-improvement-enforced? forward-research-loop-enabled? replacement-policy-strict?": "it never had an effect",
    "hydra-unverified-cap-text hydra-sampo-verbosity-weight": "it never had an effect",
    "gn-beta1 c3o-beta1": "use --muon-momentum",
    "gn-eps gn-ns-steps gn-block-size": "the new gnprox divides exactly, in the eigenbasis of its curvature",
    "gn-damping-up gn-damping-down gn-damping-gain": "the damping follows the measured reduction of the loss",
    "gn-clip-grad c3o-grad-clip": "use --grad-clip",
    "c3o-beta2 c3o-eps c3o-damping": "c3o shares out the step of --c3o-base, which has its own constants",
    "c3o-block-size": "the blocks of c3o are the logical matrices of the model",
    "c3o-credit-ema": "use --c3o-credit-ema-beta",
    "c3o-credit-skip-threshold c3o-credit-clip-value": "credit shrinks with its noise; see --c3o-block-scale-max",
    "c3o-trust-norm-refresh-steps c3o-trust-norm-refresh-drift": "norms are read where they are used",
    "c3o-foreach-fused?": "matrices of one shape are always updated together",
    "c3o-state-dtype": "use --momentum-dtype and --weight-dtype",
    "c3o-credit-loss-weight c3o-credit-verifier-weight c3o-credit-speed-weight":
        "credit is the slope of the loss along a block's step, and nothing else",
}  # fmt: skip
"""Flags (without dashes) -> what stands in their place."""

NOT_YET: dict[str, str] = {
    "instant-error-threshold": "comes with lossy INSTANT; the exact mode is used",
    "grpo-backend grpo-code-timeout-sec grpo-reward-success grpo-reward-fail": "comes with reinforcement learning",
    "ttrl-group-size ttrl-interval ttrl-max-new-tokens ttrl-temperature ttrl-top-k ttrl-refine-iters "
    "ttrl-retry-temperature-decay ttrl-retry-top-k-decay ttrl-budget-min ttrl-budget-max ttrl-asym-verify-enabled? "
    "ttrl-candidate-pool-multiplier ttrl-discriminative-topk ttrl-discriminative-weight ttrl-fast-refine-on-fail? "
    "ttrl-confidence-replay-min": "comes with reinforcement learning",
    "sigma-rl-mode sigma-rl-clip-eps sigma-rl-entropy-weight sigma-rl-kl-weight sigma-rl-dispo-logit-temp "
    "no-sigma-rl-adv-norm? sigma-rl-auto-mix-enabled? sigma-rl-auto-mix-floor": "comes with reinforcement learning",
    "verifier-math-enabled? verifier-code-enabled? verifier-cascade-enabled? verifier-refine-top-fraction "
    "verifier-min-refine-candidates": "comes with the verifiers",
    "replay-capacity replay-inject-every causal-replay-enabled? causal-replay-alpha causal-replay-ema-beta "
    "causal-replay-novelty-weight causal-replay-verifier-weight causal-replay-quality-weight "
    "causal-replay-horizon-steps causal-replay-horizon-decay": "comes with replay",
    "self-evolve-interval self-evolve-history self-evolve-lr-up self-evolve-lr-down self-evolve-lr-min-factor "
    "self-evolve-lr-max-factor self-evolve-ttrl-interval-min self-evolve-ttrl-interval-max "
    "self-evolve-target-reserved-gb": "comes with the self-improver",
    "self-improver-enabled? self-improver-interval self-improver-mutation-sigma self-improver-adaptive-sigma-enabled? "
    "self-improver-sigma-ema-beta self-improver-sigma-gain-up self-improver-sigma-gain-down self-improver-sigma-min "
    "self-improver-sigma-max": "comes with the self-improver",
    "fractal-interval-steps fractal-ucb-c": "comes with the kernel search",
    "uroboros-enabled? uroboros-interval uroboros-window-size uroboros-bo-trials uroboros-patch-trials "
    "uroboros-trial-horizon-steps uroboros-significance-alpha uroboros-min-effect-size uroboros-min-relative-gain "
    "uroboros-patch-commit-enabled?": "comes with uroboros",
    "hydra-enable? hydra-domains hydra-steps-per-phase hydra-n-candidates hydra-rollback-interval "
    "hydra-rollback-threshold hydra-update-interval hydra-dpo-beta hydra-lora-rank hydra-lora-alpha hydra-lora-lr "
    "merge-method merge-density merge-fold-into-backbone?": "comes with hydra",
    "integrity-guards-enabled? proof-mode? integrity-hidden-eval-manifest integrity-hidden-eval-every":
        "comes with the integrity guards",
}  # fmt: skip
"""Flags (without dashes) -> the system that brings them."""

VALUE_CHANGES: dict[tuple[str, str], ValueChange] = {
    ("data_backend", "hf"): ValueChange("hybrid", "now part of hybrid; add --commoncrawl-ratio 0 for the hub alone"),
    ("precision", "fp16"): ValueChange("auto", "retired (it needs loss scaling); auto is used"),
    ("device", "cuda:0"): ValueChange("cuda", "now written cuda; choose a GPU with CUDA_VISIBLE_DEVICES"),
    ("device", "gpu"): ValueChange("cuda", "now written cuda"),
    ("wandb", "none"): ValueChange("off", "now written off"),
    ("wandb", "disabled"): ValueChange("off", "now written off"),
}
"""(field, old value) -> the value that is used instead."""

ALIASES: dict[str, str] = {
    "--learning-rate": "--lr",
    "--max-steps": "--steps",
    "--max-grad-norm": "--grad-clip",
    "--hidden-size": "--d-model",
    "--num-layers": "--n-layers",
    "--num-heads": "--n-heads",
    "--context-length": "--seq-len",
    "--save-steps": "--save-interval",
    "--eval-steps": "--eval-interval",
    "--logging-steps": "--log-interval",
    "--save-total-limit": "--max-checkpoints",
}
"""Names that other trainers use -> ours; accepted with a note, and used for suggestions."""


@cache
def retired_flags() -> dict[str, Retired]:
    """Every entry of RETIRED and NOT_YET by its flag name."""
    table: dict[str, Retired] = {}
    for groups, status in ((RETIRED, "retired, ignored"), (NOT_YET, "not available yet, ignored")):
        for names, reason in groups.items():
            for word in names.split():
                name = "--" + word.removesuffix("?")
                if name in table:
                    raise ValueError(f"{name} is listed twice")
                table[name] = Retired(name, word.endswith("?"), f"{status}: {reason}")
    return table
