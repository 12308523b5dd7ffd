"""The Mamba-3 state-space scan. `op` is the entrance; `reference` is the specification."""
