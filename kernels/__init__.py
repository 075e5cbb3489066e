"""Triton kernels, float32, one file an operation. Only its modules need Triton, this package does not."""
