"""Fused residual RMSNorm: `op.rms_norm` is public, `reference.py` its specification, `kernel.py` the Triton kernels."""
