"""Optimal Eye Surgeon, many times faster: sparse untrained networks that restore images.

The method (Ghosh et al., ICML 2024) needs one noisy image and no training data: :func:`search_mask` learns
which few weights of a randomly initialised generator to keep, :func:`train_sparse` trains them on the image.

A restoration:

    import oes_fast as oes
    clean = oes.load_image("skimage:astronaut", size=512).pixels
    noisy = oes.add_noise(clean, 0.1, seed=0)
    net, z = oes.fresh_generator(noisy, seed=0)
    found = oes.search_mask(net, z, noisy, density=0.05)
    fit = oes.train_sparse(net, found.mask, z, noisy)
    oes.save_image("restored.png", fit.output)

Images are tensors [N, C, H, W] with values in 0..1. All errors are :class:`OESError`; they name the argument,
what was expected and what came.
"""

from typing import Any

import oes_fast._command  # isort: skip  # before the seconds that torch takes
import oes_fast._startup  # noqa: F401  # isort: skip  # before anything imports torch
from oes_fast import analysis, baselines, functional, models, pruning, tasks
from oes_fast.backends import backends
from oes_fast.errors import (
    BackendError,
    CheckpointError,
    CheckpointWarning,
    CollapsedRunWarning,
    DivergedRunWarning,
    EmptyLayerWarning,
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
from oes_fast.noise import add_noise, estimate_sigma, noise_input
from oes_fast.pipelines.history import History
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.many import train_many
from oes_fast.pipelines.runs_mean import RunsMean, mean_of_runs
from oes_fast.pipelines.search import SearchResult, search_mask
from oes_fast.pipelines.stop_rule import StopReport
from oes_fast.pipelines.stopping import DiscrepancyStop, HoldoutStop, VarianceStop
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
    "DiscrepancyStop",
    "DivergedRunWarning",
    "EmptyLayerWarning",
    "History",
    "HoldoutStop",
    "ImageWarning",
    "InputError",
    "Mask",
    "MaskMismatchError",
    "MaskedConv2d",
    "OESError",
    "OESWarning",
    "OutputError",
    "RunsMean",
    "SearchResult",
    "SparseGenerator",
    "StepInfo",
    "StopReport",
    "TraceError",
    "TrainResult",
    "VarianceStop",
    "VerificationError",
    "__version__",
    "add_noise",
    "analysis",
    "backends",
    "baselines",
    "estimate_sigma",
    "fingerprint",
    "fresh_generator",
    "functional",
    "load_image",
    "mean_of_runs",
    "models",
    "noise_input",
    "precision",
    "pruning",
    "psnr",
    "save_image",
    "search_mask",
    "sparsify",
    "tasks",
    "train_many",
    "train_sparse",
    "transfer_mask",
]


def __getattr__(name: str) -> Any:
    if (
        name == "SparseDIP"
    ):  # it is one of deepinv's models, which takes seconds to import, and need not be there
        from oes_fast.reconstructor import SparseDIP

        return SparseDIP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "SparseDIP"]
