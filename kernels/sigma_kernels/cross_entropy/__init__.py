"""Cross-entropy of each label: `op.cross_entropy` is public, `reference.py` specifies it, `kernel.py` is in Triton."""
