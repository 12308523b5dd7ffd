"""Orthogonalisation: `op` is public, `reference` its specification, `kernel` what Triton computes of it."""
