"""Training with Ray Train: patches from surveys, the loop, metrics, and the bundle that comes out."""
