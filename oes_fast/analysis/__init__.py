"""What distinguishes subnetworks: where a mask keeps weights, and what the loss is like around them.

Of masks alone: :func:`layer_densities`, :func:`dead_channels` and :func:`overlap`. Of a network at its
weights, those that the mask keeps: :func:`jacobian_norm`, :func:`sharpness`, :func:`hessian_eigenvalues` and
:func:`hessian_spectrum`. The weights are those of the network that is handed over: the initial ones of a
fresh network, those after training of ``TrainResult.net``. Without a mask (None) all figures are those of the
dense network.

Image and loss are what the training sees: the network in training mode, with statistics of the batch. What is
drawn comes from a seed, and the same call gives the same bits again on a CPU with as many threads. Neither
the network nor its running statistics nor the global random state is changed.
"""

from oes_fast.analysis.channels import LiveChannels, dead_channels
from oes_fast.analysis.hessian import HessianEigenvalues, hessian_eigenvalues
from oes_fast.analysis.jacobian import JacobianNorm, jacobian_norm
from oes_fast.analysis.layers import Layer, layer_densities
from oes_fast.analysis.overlap import LayerOverlap, Overlap, overlap
from oes_fast.analysis.sharpness import Sharpness, sharpness
from oes_fast.analysis.spectrum import HessianSpectrum, hessian_spectrum

__all__ = [
    "HessianEigenvalues",
    "HessianSpectrum",
    "JacobianNorm",
    "Layer",
    "LayerOverlap",
    "LiveChannels",
    "Overlap",
    "Sharpness",
    "dead_channels",
    "hessian_eigenvalues",
    "hessian_spectrum",
    "jacobian_norm",
    "layer_densities",
    "overlap",
    "sharpness",
]
