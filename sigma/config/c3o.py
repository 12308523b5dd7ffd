"""C3O: which direction it shares out, and how its credit is measured, followed and audited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class C3OSection:
    """The optimizer c3o: the base direction's steps, shared out between blocks by measured credit."""

    c3o_credit_enabled: bool = opt(
        False, "Measure the credit of each block and share the update out by it (with --optimizer c3o)."
    )
    c3o_base: Literal["muon", "normuon", "adamuon", "soapmuon"] = opt(
        "normuon", "Direction whose step c3o shares out; with credit off c3o is this optimizer, bit for bit."
    )
    c3o_probe_interval: int = opt(16, "Steps between two measurements of credit.", low=2, high=10000)
    c3o_credit_ema_beta: float = opt(0.95, "Weight of the past in the averages over measurements.", low=0, high=0.999)
    c3o_credit_gain: float = opt(0.05, "Share of the way to its target that a scale goes with each.", low=0, high=1)
    c3o_block_scale_min: float = opt(0.5, "Least multiple of the learning rate for a block.", low=0.01, high=1)
    c3o_block_scale_max: float = opt(2.0, "Largest multiple of the learning rate for a block.", low=1, high=100)
    c3o_trust_radius: float = opt(
        0.15,
        "Largest relative update to which credit may raise a block: |step| / max(|W|, sqrt(rows)).",
        low=0,
        high=10,
    )
    c3o_audit_interval: int = opt(
        64, "Steps between two audits of the credit, a multiple of --c3o-probe-interval.", low=2, high=1000000
    )
    c3o_audit_blocks: int = opt(4, "Blocks whose last step an audit takes back, one at a time.", low=2, high=64)
