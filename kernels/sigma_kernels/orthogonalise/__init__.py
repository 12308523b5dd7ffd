"""Orthogonalisation: `op` is public, `reference` its specification, `kernel` the symmetric products in Triton."""
