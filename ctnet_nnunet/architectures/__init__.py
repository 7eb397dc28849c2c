"""Networks in pure torch: the transformer residual, CTNet, CMFF, and the fixed table from a plan to a network."""
