"""Optimal Eye Surgeon, many times faster: sparse untrained networks that restore images.

import oes_fast as oes

net = oes.models.skip(seed=0)
z = oes.noise_input(32, (512, 512), seed=0)
found = oes.search_mask(net, z, noisy, density=0.05)
fit = oes.train_sparse(net, found.mask, z, noisy)
fit.output  # the restored image, [1, 3, 512, 512]
"""

import oes_fast._command  # isort: skip  # before the seconds that torch takes
import oes_fast._startup  # noqa: F401  # isort: skip  # before anything imports torch
from oes_fast import functional, models
from oes_fast.backends import backends
from oes_fast.errors import (
    BackendError,
    CheckpointError,
    CheckpointWarning,
    CollapsedRunWarning,
    DivergedRunWarning,
    ImageWarning,
    InputError,
    MaskMismatchError,
    OESError,
    OESWarning,
    OutputError,
)
from oes_fast.flat import fingerprint
from oes_fast.io.image import load_image, psnr, save_image
from oes_fast.mask import Mask
from oes_fast.nn import MaskedConv2d
from oes_fast.noise import add_noise, noise_input
from oes_fast.pipelines.history import History
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.search import SearchResult, search_mask
from oes_fast.pipelines.train import TrainResult, train_sparse
from oes_fast.pipelines.transfer import fresh_generator, transfer_mask
from oes_fast.precision import precision
from oes_fast.rewrite import SparseGenerator, TraceError, VerificationError, sparsify
from oes_fast.version import __version__

__all__ = [
    "BackendError",
    "CheckpointError",
    "CheckpointWarning",
    "CollapsedRunWarning",
    "DivergedRunWarning",
    "History",
    "ImageWarning",
    "InputError",
    "Mask",
    "MaskMismatchError",
    "MaskedConv2d",
    "OESError",
    "OESWarning",
    "OutputError",
    "SearchResult",
    "SparseGenerator",
    "StepInfo",
    "TraceError",
    "TrainResult",
    "VerificationError",
    "__version__",
    "add_noise",
    "backends",
    "fingerprint",
    "fresh_generator",
    "functional",
    "load_image",
    "models",
    "noise_input",
    "precision",
    "psnr",
    "save_image",
    "search_mask",
    "sparsify",
    "train_sparse",
    "transfer_mask",
]
