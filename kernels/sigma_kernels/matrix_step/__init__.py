"""What surrounds an orthogonalisation: momentum before it, the weights after it; `op` is public."""
