"""How a plan runs: on PyTorch, on the sparse operations, on Triton, or as one call of the extension."""
