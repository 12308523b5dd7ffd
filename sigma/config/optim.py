"""Which parameters the matrix optimizer owns, and how it turns a gradient into a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class OptimSection:
    """Groups of parameters, the Muon family (muon, normuon, adamuon), AdamW's constants, and the types of the state."""

    muon_exclude_embeddings: bool = opt(True, "AdamW owns the embedding, also when it is the head.")
    muon_exclude_lm_head: bool = opt(True, "AdamW owns the head.")
    muon_exclude_router: bool = opt(True, "AdamW owns the small matrices that steer (routers, time step, lambda).")
    fused_lr_scale: float = opt(1.0, "Learning rate of fused projections, in units of --lr.", low=0, high=1000)
    expert_lr_scale: float = opt(1.0, "Learning rate of the expert stacks, in units of --lr.", low=0, high=1000)
    embedding_lr_scale: float = opt(
        1.0, "Learning rate of the embedding, in units of --adam-lr (of --lr when Muon owns it).", low=0, high=1000
    )
    head_lr_scale: float = opt(
        1.0, "Learning rate of the head, in units of --adam-lr (of --lr when Muon owns it).", low=0, high=1000
    )
    router_lr_scale: float = opt(
        1.0, "Learning rate of routers, in units of --adam-lr (of --lr when Muon owns them).", low=0, high=1000
    )
    vector_lr_scale: float = opt(1.0, "Learning rate of norms and vectors, in units of --adam-lr.", low=0, high=1000)
    muon_momentum: float = opt(0.95, "Weight of the past in the average of the gradients.", low=0, high=0.9999)
    muon_nesterov: bool = opt(True, "Mix the newest gradient into the averaged one once more.")
    muon_polynomial: Literal["polar_express", "newton_schulz"] = opt(
        "polar_express", "Orthogonalise with a polynomial for each iteration, or with torch.optim.Muon's single one."
    )
    muon_iterations: int = opt(5, "Iterations of an orthogonalisation.", low=1, high=20)
    muon_block_period: int = opt(
        1, "Orthogonalise whole matrices every so many steps and blocks of their rows in between.", low=1
    )
    muon_block_rows: int = opt(128, "Rows of such a block.", low=1)
    muon_interval: int = opt(
        1, "Most steps for which an orthogonalisation's transform is used again before the next one.", low=1, high=1000
    )
    muon_interval_warmup: int = opt(2000, "Steps over which that interval grows from 1 to its value.", low=0)
    teon_layers: int = opt(1, "Orthogonalise the same matrix of so many layers together (TEON).", low=1, high=64)
    normuon_beta2: float = opt(0.95, "Weight of the past in NorMuon's mean squares of rows.", low=0, high=1)
    adamuon_beta2: float = opt(0.95, "Weight of the past in AdaMuon's squares of elements.", low=0, high=0.9999)
    cautious_weight_decay: bool = opt(False, "Decay only those weights of a matrix that the update shrinks too.")
    momentum_dtype: Literal["fp32", "bf16", "int8"] = opt("fp32", "How the matrix optimizer keeps its momentum.")
    weight_dtype: Literal["fp32", "bf16_residual"] = opt(
        "fp32", "How its matrices are kept: 32 bits, or bf16 with 8 more bits in the optimizer's state."
    )
    optim_graph: bool = opt(
        True, "Run the matrix optimizer's step from a CUDA graph: fewer launches for the same bits."
    )
    adam_beta1: float = opt(0.9, "AdamW: weight of the past in the average of the gradients.", low=0, high=0.9999)
    adam_beta2: float = opt(0.95, "AdamW: weight of the past in the average of their squares.", low=0, high=0.99999)
    adam_eps: float = opt(1e-8, "AdamW: added to the root of the squares.", low=1e-20, high=1)
