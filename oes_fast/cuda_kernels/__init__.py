"""Launches of the CUDA C++ kernels (csrc/cuda): functions as those of oes_fast.kernels.

Where a tensor of one network has the shape [n], those of N networks at once have [N, n], and every network
may have a seed of its own.
"""
