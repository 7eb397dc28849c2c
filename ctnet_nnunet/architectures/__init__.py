"""Networks in pure torch: the transformer residual, CTNet, and the fixed table from a plan to a network."""
