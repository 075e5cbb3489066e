"""``oes-fast denoise``."""

from __future__ import annotations

from oes_fast.cli import options as o
from oes_fast.cli.problem import ImageOptions
from oes_fast.cli.task import restoring_command


@restoring_command(weights_mask=o.SearchedMask)
def denoise(
    image: o.ImageIn,
    size: o.Size = None,
    sigma: o.Sigma = None,
    clean: o.Clean = None,
) -> ImageOptions:
    """Restore one image: search a mask over an untrained network's weights, then train the weights it keeps.

    Writes, for -o OUT.png:

    * OUT.png, the restored image, with the bits and the alpha channel of IN;
    * OUT_mask.safetensors, the mask, for `train` and `transfer`;
    * OUT_comparison.png, noisy, restored and clean side by side;
    * OUT_psnr.png, the PSNR over the steps (with --sigma or --clean);
    * OUT_spread.png and OUT_spread.npy, how far several runs lie apart (with --runs);
    * OUT.json, everything about the run, for programs.

    While it runs it keeps OUT.search.ckpt and OUT.train.ckpt (one for each of --runs), and removes them when
    every result is written: a run that was stopped or killed goes on with --resume and ends where it would
    have ended. Ctrl-C writes what there is.

    A run whose output has become flat has collapsed: a warning and "collapsed" in the JSON say so, the
    results are written, and the exit code is 0.
    """
    return ImageOptions(image, size, sigma, clean)
