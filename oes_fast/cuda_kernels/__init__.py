"""Launches of the CUDA C++ kernels (csrc/cuda): the functions of oes_fast.kernels, for networks at once as well.

Where a tensor of one network has the shape [n], those of N networks have [N, n], and every network its own seed.
"""
