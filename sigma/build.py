"""The composition root: RunConfig -> Trainer. The only place that knows every part, and the order of the features."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import Parameter

from sigma.config.parse import Parsed
from sigma.config.resolved import write_resolved
from sigma.config.root import RunConfig
from sigma.core.files import write_atomic
from sigma.core.lock import RunLock
from sigma.core.stop import StopRequest
from sigma.data.backends import build_stream
from sigma.data.corpus import load_corpus
from sigma.data.stream import BatchStream
from sigma.data.tokenizer import Tokenizer, load_tokenizer
from sigma.data.validation import Validation
from sigma.features.c3o_credit import C3OCredit
from sigma.features.diff_mla import DiffMla
from sigma.features.gnprox import GNProxCurvature
from sigma.features.instant import Instant
from sigma.model.configuration import sigma_config_from
from sigma.model.modeling import SigmaForCausalLM
from sigma.optim.build import OptimizerSet, build_optimizers
from sigma.optim.c3o import C3O
from sigma.optim.gnprox import GNProx
from sigma.train import wandb_relay
from sigma.train.checkpoint import CheckpointStore
from sigma.train.clock import PhaseClock, make_clock
from sigma.train.compatibility import identity_of
from sigma.train.evaluate import EvaluationSettings, Evaluator
from sigma.train.feature import Feature, FeatureSet
from sigma.train.flops import active_parameters, train_flops_per_token
from sigma.train.hardware import device_name, peak_flops
from sigma.train.kernel_stamp import stamp_of
from sigma.train.loop import Trainer
from sigma.train.manifest import write_manifest
from sigma.train.metrics import IntervalMeter, Listener, MetricsLog, SpeedMeter
from sigma.train.progress import Progress
from sigma.train.rehearsal import make_kernels
from sigma.train.sample import Sampler
from sigma.train.saver import Saver
from sigma.train.state import StateRegistry, read_rng, write_rng
from sigma.train.step import Stepper, StepSettings
from sigma_kernels import counters, pipelining

FEATURE_NAMES = ("instant", "diff_mla", "c3o_credit")
TOKENIZER_NAME = "tokenizer.json"


def build_trainer(
    config: RunConfig,
    origins: Mapping[str, str] | None = None,
    *,
    listeners: Iterable[Listener] = (),
    stop: StopRequest | None = None,
    lock: RunLock | None = None,
) -> Trainer:
    """Everything that a run needs, locked to its output folder and ready for `run()`; nothing is trained yet.

    `config` is resolved (no None, no `auto`); `origins` are written into resolved_args.txt; `listeners` receive every
    row of metrics; a `lock` that the caller already holds becomes the trainer's. Raises RunLockedError when another
    process trains in the folder, ConfigError for sizes that do not fit together.
    """
    lock = lock or RunLock(config.run.output_dir).acquire()
    try:
        return _build(config, dict(origins or {}), listeners, stop or StopRequest(), lock)
    except BaseException:
        lock.release()
        raise


def _build(
    config: RunConfig, origins: dict[str, str], listeners: Iterable[Listener], stop: StopRequest, lock: RunLock
) -> Trainer:
    began = time.perf_counter()
    run_dir, device = config.run.output_dir, torch.device(config.run.device)
    make_repeatable(config.run.seed, device, config.run.deterministic)
    counters.load({})
    tokenizer = load_tokenizer(config.data.tokenizer)
    model = build_model(config, tokenizer.vocab_size)
    model.to(device)  # pyright: ignore[reportArgumentType] - transformers wraps it without a type
    optimizers = optimizers_of(config, model)
    data = stream_of(config, tokenizer)
    log, clock, progress = MetricsLog(run_dir, listeners), make_clock(device), Progress()
    data.listen(lambda event, **details: log.event(event, progress.step, **details), lambda: stop.requested)
    features = FeatureSet(features_of(config, optimizers), FEATURE_NAMES)
    stepper = build_stepper(config, model, optimizers, clock, features, log)
    features.setup(stepper.context())
    stamp = stamp_of(config, tokenizer.vocab_size)
    kernels = make_kernels(stamp, stepper, lambda few: optimizers_of(config, model, few), config.data.seq_len or 1)
    meter = IntervalMeter(device)
    optimizers.listen(lambda event, **details: log.event(event, progress.step, **details))
    registry = registry_of(model, optimizers, data, features, stepper, meter, progress)
    clock.read()
    # right behind: the phases of the first row are to add up to its wall time too
    speed = SpeedMeter(train_flops_per_token(model, config.data.seq_len or 1), peak_flops(device))
    trainer = Trainer(
        config=config,
        run_dir=run_dir,
        model=model,
        data=data,
        stepper=stepper,
        features=features,
        evaluator=build_evaluator(config, model, tokenizer),
        sampler=build_sampler(config, model, tokenizer),
        saver=build_saver(config, registry, progress, log),
        log=log,
        clock=clock,
        meter=meter,
        speed=speed,
        stop=stop,
        lock=lock,
        progress=progress,
        startup=startup_row(config, model, optimizers, tokenizer) | kernels,
        on_start=lambda step: write_records(config, origins, tokenizer, step),
        stamp=stamp,
    )
    trainer.startup["startup_init_s"] = time.perf_counter() - began
    return trainer


def make_repeatable(seed: int, device: torch.device, deterministic: bool) -> None:
    """Seed the global generators; allow only repeatable algorithms: always on the CPU, if `deterministic` on CUDA."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    strict = deterministic or device.type == "cpu"
    if strict and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(strict)
    # a debugging aid that costs a write per tensor
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def build_model(config: RunConfig, vocabulary: int) -> SigmaForCausalLM:
    """The model with its initial weights, fp32, in training mode; INSTANT is put in place by its feature."""
    return SigmaForCausalLM(sigma_config_from(config, vocabulary)).train()


def optimizers_of(
    config: RunConfig, model: SigmaForCausalLM, parameters: Mapping[str, Parameter] | None = None
) -> OptimizerSet:
    """What moves the weights of the model, or these of them."""
    parameters, roles = parameters or dict(model.named_parameters()), model.parameter_roles()
    return build_optimizers(parameters, roles, config.train, config.optim, config.curvature, config.c3o)


def features_of(config: RunConfig, optimizers: OptimizerSet) -> list[Feature]:
    """The enabled features, in the order in which their hooks run.

    Those of the optimizers run forwards of their own before the step: after INSTANT has measured the first one, before
    differential attention begins to count.
    """
    features: list[Feature] = []
    if config.train.instant_enabled:
        features.append(Instant())
    features += optimizer_features(config, optimizers)
    if config.model.attention_ratio > 0:
        features.append(DiffMla())
    return features


def optimizer_features(config: RunConfig, optimizers: OptimizerSet) -> list[Feature]:
    """What an optimizer needs of the batches: curvature, and the audit of credit."""
    matrix, rows = optimizers.matrix, config.data.micro_batch_size
    assert rows is not None
    if matrix is None:
        return []
    features: list[Feature] = []
    if isinstance(matrix.direction, GNProx):
        gn = config.curvature
        watched = min(gn.gn_rows, rows)
        kwargs = {"interval": gn.gn_interval, "rows": watched, "reduction_rows": rows, "seed": config.run.seed}
        features.append(GNProxCurvature(matrix, matrix.direction, **kwargs, drawn=gn.gn_labels == "drawn"))
    if isinstance(matrix.allocation, C3O):
        c3o = config.c3o
        kwargs = {"interval": c3o.c3o_audit_interval, "blocks": c3o.c3o_audit_blocks, "rows": rows}
        features.append(C3OCredit(matrix.allocation, **kwargs, seed=config.run.seed))
    return features


def stream_of(config: RunConfig, tokenizer: Tokenizer) -> BatchStream:
    """The training data from its beginning, or from where the journal in the output folder ends."""
    run = config.run
    assert config.data.batch_size is not None
    return build_stream(
        config.data, run.seed, tokenizer, config.data.batch_size, run_dir=run.output_dir, fresh=not run.resume
    )


def build_stepper(
    config: RunConfig,
    model: SigmaForCausalLM,
    optimizers: OptimizerSet,
    clock: PhaseClock,
    features: FeatureSet,
    log: MetricsLog,
) -> Stepper:
    """The step, compiled when `--torch-compile` is given on CUDA."""
    device = torch.device(config.run.device)
    assert config.data.micro_batch_size is not None
    settings = StepSettings(
        device=device,
        bf16=config.train.precision == "bf16",
        micro_batch=config.data.micro_batch_size,
        grad_clip=config.train.grad_clip,
    )
    return Stepper(
        model,
        optimizers,
        settings,
        clock,
        on_loss=lambda s: features.run("on_loss", s),
        on_retry=features.retry,
        on_event=log.event,
        forward=torch.compile(model) if compiles(config) else model,
    )


def compiles(config: RunConfig) -> bool:
    """Whether the training forward is compiled: `--torch-compile` counts on CUDA only."""
    return config.train.torch_compile and config.run.device == "cuda"


def build_evaluator(config: RunConfig, model: SigmaForCausalLM, tokenizer: Tokenizer) -> Evaluator:
    """Validation over the held-out text of the corpus."""
    assert config.data.micro_batch_size is not None
    assert config.data.seq_len is not None
    assert config.data.batch_size is not None
    settings = EvaluationSettings(
        device=torch.device(config.run.device),
        bf16=config.train.precision == "bf16",
        rows=config.data.micro_batch_size,
        length=config.data.seq_len,
        max_tokens=config.data.val_max_tokens,
        batch_tokens=config.data.batch_size * config.data.seq_len,
    )
    bundled = replace(config, data=replace(config.data, data_backend="bundled", source_prefetch=0, num_workers=0))
    return Evaluator(
        model,
        Validation(tokenizer),
        config.run.output_dir,
        settings,
        vocabulary=tokenizer.vocab_size,
        fresh_stream=lambda: stream_of(bundled, tokenizer),
    )


def build_sampler(config: RunConfig, model: SigmaForCausalLM, tokenizer: Tokenizer) -> Sampler:
    """Text samples with the run's seed."""
    return Sampler(
        model,
        tokenizer,
        config.run.output_dir,
        device=torch.device(config.run.device),
        bf16=config.train.precision == "bf16",
        seed=config.run.seed,
        tokens=config.run.sample_tokens,
    )


def build_saver(config: RunConfig, registry: StateRegistry, progress: Progress, log: MetricsLog) -> Saver:
    """Checkpoints with the run's cadence and disk budget."""
    run = config.run
    store = CheckpointStore(
        run.output_dir,
        identity_of(config),
        keep=run.max_checkpoints,
        budget_bytes=int(run.checkpoint_budget_gb * 1e9),
        save_interval=run.save_interval,
        save_minutes=run.save_minutes,
    )
    return Saver(
        store,
        registry,
        lambda: (progress.tokens, progress.val_bpb),
        lambda e: log.event(f"checkpoint_{e.kind}", progress.step, checkpoint=e.checkpoint, detail=e.detail),
    )


def registry_of(
    model: SigmaForCausalLM,
    optimizers: OptimizerSet,
    data: BatchStream,
    features: FeatureSet,
    stepper: Stepper,
    meter: IntervalMeter,
    progress: Progress,
) -> StateRegistry:
    """The inventory of what a checkpoint holds. The schedule is a function of step and configuration: not state."""
    registry = StateRegistry()
    registry.register_tensors("model", model.state_dict, model.load_state_dict)
    registry.register_tensors("optim", optimizers.tensors, optimizers.load_tensors)
    registry.register_tensors("stream", data.tensors, data.load_tensors)  # of the item `data`, and restored before it
    for name, part in {
        "progress": progress,
        "data": data,
        "features": features,
        "stepper": stepper,
        "meter": meter,
    }.items():
        registry.register(name, part.state_dict, part.load_state_dict)
    registry.register("optimizers", optimizers.state_dict, optimizers.load_state_dict, optimizers.check_state)
    registry.register("counters", counters.snapshot, counters.load)
    registry.register("rng", read_rng, write_rng)  # last: restoring the others may draw
    return registry


def startup_row(
    config: RunConfig, model: SigmaForCausalLM, optimizers: OptimizerSet, tokenizer: Tokenizer
) -> dict[str, Any]:
    """What the `startup` row says about the run."""
    run, data, train = config.run, config.data, config.train
    device = torch.device(run.device)
    return {
        "run_dir": str(run.output_dir),
        "preset": run.preset,
        "device": run.device,
        "device_name": device_name(device),
        "precision": train.precision,
        "optimizer": train.optimizer,
        "parameters": sum(p.numel() for p in model.parameters()),
        "active_parameters": active_parameters(model),
        "flops_per_token": train_flops_per_token(model, data.seq_len or 1),
        "steps": train.steps,
        "tokenizer": tokenizer.name,
        "tokenizer_encoder": tokenizer.encoder,
        "seq_len": data.seq_len,
        "batch_size": data.batch_size,
        "micro_batch_size": data.micro_batch_size,
        "log_interval": run.log_interval,
        "eval_interval": run.eval_interval,
        "sample_interval": run.sample_interval,
        "torch_compile_enabled": train.torch_compile,
        "torch_compile_active": compiles(config),
        "pipelined_loops": pipelining.is_on(),
        "optim_graph": optimizers.why_no_graph() or "used",
        "routing": optimizers.table(),
    }


def keep_tokenizer(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """`config` with the run's own copy of a tokenizer that is not bundled; the original may be moved or changed."""
    if tokenizer.content is None:
        return config
    path = config.run.output_dir / TOKENIZER_NAME
    write_atomic(path, tokenizer.content.encode())
    return replace(config, data=replace(config.data, tokenizer=path))


def write_records(config: RunConfig, origins: dict[str, str], tokenizer: Tokenizer, step: int) -> None:
    """When it is certain that the run goes on: `resolved_args.txt`, `run_manifest.json`, the Weights & Biases relay."""
    run_dir: Path = config.run.output_dir
    config = keep_tokenizer(config, tokenizer)
    # --no-resume is about one start: the next one continues what this one begins
    write_resolved(Parsed(replace(config, run=replace(config.run, resume=True)), origins=origins))
    hashes = {"corpus": load_corpus().fingerprint, "tokenizer": tokenizer.fingerprint}
    write_manifest(run_dir, config, hashes, device_name(torch.device(config.run.device)), step)
    if config.run.wandb != "off":
        wandb_relay.start(run_dir, config.run.wandb, os.getpid())
