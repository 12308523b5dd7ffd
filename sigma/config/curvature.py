"""The matrix optimizers that work in the eigenbasis of a curvature: soapmuon and gnprox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class CurvatureSection:
    """Statistics, their refresh, and GNProx's step."""

    soap_beta: float = opt(0.9, "soapmuon: weight of the past in the gradient statistics.", low=0, high=0.9999)
    soap_interval: int = opt(10, "soapmuon: steps between two refreshes of the eigenbases.", low=1, high=10000)
    gn_beta2: float = opt(0.9, "gnprox: weight of the past in the curvature statistics.", low=0, high=0.9999)
    gn_interval: int = opt(10, "gnprox: steps between two measurements of the curvature.", low=1, high=10000)
    gn_rows: int = opt(1, "gnprox: rows of the batch that a curvature measurement reads.", low=1, high=65536)
    gn_labels: Literal["drawn", "text"] = opt(
        "drawn", "gnprox: labels of a measurement; those of the text give the empirical Fisher matrix, as an ablation."
    )
    gn_mode: Literal["polar", "newton", "clip"] = opt(
        "polar",
        "gnprox: polar orthogonalises the step, newton keeps its direction, clip bounds its singular values.",
    )
    gn_noise_aware: bool = opt(True, "gnprox: power of the curvature from 1/2 to 1 with the signal-to-noise ratio.")
    gn_exponent: float = opt(1.0, "gnprox: power of the curvature when it does not follow the noise.", low=0, high=1)
    gn_damping: float = opt(0.1, "gnprox: damping at the start, in units of the mean curvature.", low=0, high=1000)
    gn_damping_min: float = opt(1e-4, "gnprox: smallest damping.", low=0, high=1000)
    gn_damping_max: float = opt(10.0, "gnprox: largest damping.", low=0, high=1000)
    gn_damping_interval: int = opt(
        16, "gnprox: steps between two adaptions of the damping to the measured reduction.", low=1, high=10000
    )
