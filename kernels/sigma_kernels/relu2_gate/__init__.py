"""The ReLU^2 gate: `op.relu2_gate` is public, `reference.py` its specification, `kernel.py` the Triton kernels."""
