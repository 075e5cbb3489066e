"""Inverse problems: what was measured, and the operator that says what would be measured of an image.

Each function makes a :class:`Task` from an image that is measured already, or from a clean one that it
degrades. The operators are deepinv's (``pip install "oes_fast[physics]"``).

    task = oes.tasks.inpainting(clean, missing=0.5, sigma=0.05, seed=0)
    net, z = oes.fresh_generator(task.noisy, shape=task.shape, options=task.model_options, seed=0)
    found = oes.search_mask(net, z, task.noisy, density=0.05, **task.arguments())
    fit = oes.train_sparse(net, found.mask, z, task.noisy, **task.arguments())
    oes.save_image("restored.png", task.shown(fit.output))
"""

from oes_fast.pipelines.clean import CleanView
from oes_fast.tasks.deblurring import deblurring
from oes_fast.tasks.inpainting import inpainting
from oes_fast.tasks.kspace import KSpace, load_kspace
from oes_fast.tasks.mri import mri
from oes_fast.tasks.superresolution import superresolution
from oes_fast.tasks.task import Task

__all__ = [
    "CleanView",
    "KSpace",
    "Task",
    "deblurring",
    "inpainting",
    "load_kspace",
    "mri",
    "superresolution",
]
