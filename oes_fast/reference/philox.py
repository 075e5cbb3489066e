"""Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011, section 4.1).

The contract every backend meets bit for bit. The 32-bit word of one element is a pure function of
(seed, step, stream, element):

    key     = (seed mod 2^32, seed div 2^32)                         seed in [0, 2^64)
    counter = (block mod 2^32, block div 2^32, step, stream)         block = element div 4
    word    = philox4x32_10(counter, key)[element mod 4]

so it depends on neither device, thread count nor block size, and nothing needs to be stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

MASK_NOISE = 0  # stream: logistic noise of the relaxed mask
TIE_BREAK = 1  # stream: order of equal logits when the mask is cut
INPUT_NOISE = 2  # stream: seed of the generator's input
IMAGE_NOISE = 3  # stream: seed of noise added to an image
SHUFFLE = 4  # stream: seed of shuffled masks
MASK_DRAW = 5  # stream: masks drawn from the probabilities that a search found; the step is the draw
LEVEL_NOISE = 6  # streams 6 + 256 k: Gumbel noise of level k of a mask of more than two levels
DRAW_LEVEL = 7  # streams 7 + 256 k: the same of drawn masks
STEP_INPUT_NOISE = 8  # stream: noise added to the generator's input in each step
STEP_WEIGHT_NOISE = 9  # stream: noise added to the weights after each step
SAMPLING = 10  # stream: seed of what a simulated operator draws, such as missing pixels
SEARCH_INPUT_NOISE = 11  # stream: as STEP_INPUT_NOISE, of a mask search
RANDOM_SCORES = 12  # stream: scores of random pruning
HELD_OUT = 13  # stream: pixels that are left out of the loss, to stop by
PROBE = 16  # stream: signs that traces, norms and spectra are estimated with; the step is the probe
LEVEL_STRIDE = 256
NOISE_BITS = 23  # bits of a word that make the noise

_ROUNDS = 10
_PIECE = 2**18  # elements drawn at a time
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of that shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, which keeps all 64 bits; the shift is arithmetic, so the high word is masked.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def random_bits(
    seed: int,
    step: int,
    numel: int,
    *,
    stream: int = MASK_NOISE,
    device: torch.device | str | None = None,
) -> Tensor:
    """Words of elements 0 .. numel-1.

    Args:
        seed: key, in [0, 2^64).
        step: in [0, 2^32).
        numel: how many elements.
        stream: what the words are for, in [0, 2^32).
        device: where to make them.

    Returns:
        int64 of shape [numel], values in [0, 2^32).
    """
    return _words(seed, step, stream, 0, numel, device)


def _words(
    seed: int, step: int, stream: int, first: int, last: int, device: torch.device | str | None
) -> Tensor:
    """Words of elements first .. last - 1; ``first`` is a multiple of 4."""
    block = torch.arange(first // 4, (last + 3) // 4, dtype=torch.int64, device=device)
    counter = (block & _LOW, block >> 32, torch.full_like(block, step), torch.full_like(block, stream))
    words = philox4x32(counter, (seed & _LOW, seed >> 32))
    return torch.stack(words, dim=1).flatten()[: last - first]


def seeded_generator(seed: int, stream: int) -> torch.Generator:
    """A torch.Generator on the CPU for one purpose.

    With ``manual_seed(seed)`` alone, whatever is drawn under one seed is a function of the same random words:
    noise added to an image could be computed from the input of the network that is to remove it.

    Args:
        seed: in [0, 2^64).
        stream: what it is for.
    """
    low, high = random_bits(seed, 0, 2, stream=stream, device="cpu").tolist()
    return torch.Generator("cpu").manual_seed((high << 32 | low) & 0x7FFFFFFFFFFFFFFF)


def logistic_from_bits(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logistic(0, 1) noise log(U / (1 - U)) of 32-bit words, with U = (word div 2^9 + 1/2) / 2^23.

    23 bits make U and 1 - U exact in float32 and never 0 or 1, so every word gives a finite value
    (|L| <= 16.64). Written as +-log1p(|a - b| / min(a, b)) with U = a / 2^23 and 1 - U = b / 2^23, it has
    no cancellation: computed in float64 and rounded once.

    Args:
        bits: integer tensor of any shape, values in [0, 2^32).
        dtype: of the result.

    Returns:
        Tensor of that shape.
    """
    a = (bits >> (32 - NOISE_BITS)).to(torch.float64) + 0.5
    b = 2.0**NOISE_BITS - a
    difference = a - b
    return torch.copysign(torch.log1p(difference.abs() / torch.minimum(a, b)), difference).to(dtype)


def logistic_noise(
    seed: int,
    step: int,
    numel: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logistic(0, 1) noise of elements 0 .. numel-1 at one step: see :func:`random_bits`.

    Returns:
        ``dtype`` tensor of shape [numel].
    """
    return _last_noise(seed, step, numel, dtype, _device(device)).clone()


def normal_from_bits(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal noise sqrt(2) erfinv(2 U - 1) of 32-bit words, with U as in :func:`logistic_from_bits`.

    One word makes one number, by the inverse of the distribution function: 2 U - 1 is exact and never +-1,
    so every word gives a finite value (|x| <= 5.30). Computed in float64 and rounded once.

    Args:
        bits: integer tensor of any shape, values in [0, 2^32).
        dtype: of the result.

    Returns:
        Tensor of that shape.
    """
    # An odd integer between -2^23 and 2^23 over 2^23.
    centred = ((bits >> (32 - NOISE_BITS)) * 2 + (1 - 2**NOISE_BITS)).to(torch.float64)
    return centred.mul_(2.0**-NOISE_BITS).erfinv_().mul_(2.0**0.5).to(dtype)


def gumbel_from_bits(bits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gumbel(0, 1) noise -log(-log U) of 32-bit words, with U as in :func:`logistic_from_bits`.

    Every word gives a finite value, -2.82 <= g <= 16.64: computed in float64 and rounded once.

    Args:
        bits: integer tensor of any shape, values in [0, 2^32).
        dtype: of the result.

    Returns:
        Tensor of that shape.
    """
    uniform = ((bits >> (32 - NOISE_BITS)).to(torch.float64) + 0.5) / 2.0**NOISE_BITS  # exact
    return -torch.log(-torch.log(uniform)).to(dtype)


def level_noise(
    seed: int,
    step: int,
    numel: int,
    levels: int,
    *,
    stream: int = LEVEL_NOISE,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Gumbel(0, 1) noise of ``levels`` levels of elements 0 .. numel-1 at one step.

    Level k of an element draws from its word of the stream ``stream + 256 k``, so that adding a level leaves
    the noise of the others as it is.

    Returns:
        ``dtype`` tensor of shape [levels, numel].
    """
    return _last_levels(seed, step, numel, levels, stream, dtype, _device(device)).clone()


def _device(device: torch.device | str | None) -> torch.device:
    """Which one None stands for at the moment: not what it stood for when the noise was kept."""
    return torch.get_default_device() if device is None else torch.device(device)


@functools.lru_cache(maxsize=1)
def _last_noise(seed: int, step: int, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A step of the search asks twice, for its sample and for its update; drawing takes most of the time.
    noise = torch.empty(numel, dtype=dtype, device=device)
    return _draw(noise, seed, step, MASK_NOISE, logistic_from_bits)


@functools.lru_cache(maxsize=1)
def _last_levels(
    seed: int,
    step: int,
    numel: int,
    levels: int,
    stream: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    noise = torch.empty(levels, numel, dtype=dtype, device=device)
    for level, row in enumerate(noise):
        _draw(row, seed, step, stream + LEVEL_STRIDE * level, gumbel_from_bits)
    return noise


def _draw(
    noise: Tensor, seed: int, step: int, stream: int, of_bits: Callable[[Tensor, torch.dtype], Tensor]
) -> Tensor:
    """Fill ``noise`` [n]: in pieces that stay in a processor's cache it takes half as long."""
    for first in range(0, noise.numel(), _PIECE):
        last = min(first + _PIECE, noise.numel())
        words = _words(seed, step, stream, first, last, noise.device)
        noise[first:last] = of_bits(words, noise.dtype)
    return noise
