"""Convolutions with batch norms between them, run as one by Triton kernels.

The engine behind :mod:`oes_fast.rewrite.run.chain_triton`. Convolutions are matrix products over lists of
taps (:mod:`tap_sum`, :mod:`weight_grad`); between two of them only the raw result of the first is stored, and
who reads it normalises and activates it (:mod:`reader`). Sums over an image are finished by the last program
that adds to them (:mod:`finalise`).
"""
