"""What tests/kernels/aot_compile.py compiles: every kernel that is shipped, in every configuration."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from oes_fast.kernels import (
    batch_norm_act,
    batch_norm_act_whole,
    gumbel_mask,
    mask_update,
    masked_adam,
    masked_conv2d,
    output_head,
    philox,
    running_stats,
    sparse_conv2d,
    sparse_taps,
    sparse_up_conv2d,
)
from oes_fast.kernels.tuning import Config

EXACT = {"num_warps": 4, "enable_fp_fusion": False}  # arithmetic of the mask step, that of the CPU


INT32 = (
    "places_ptr",
    "offsets_ptr",
    "order_ptr",
    "starts_ptr",
    "group_segments_ptr",
    "group_starts_ptr",
)
POINTERS = {
    "words_ptr": torch.int64, "bits_ptr": torch.int64, "kl_ptr": torch.float64, "mask_ptr": torch.bool,
    "keep_ptr": torch.bool, "channels_ptr": torch.int64, "ticks_ptr": torch.int64,
    **dict.fromkeys(INT32, torch.int32),
}  # fmt: skip
FLOATS = {
    "scale", "kl", "kl_offset", "log_density", "log_rest", "beta1", "beta1_rest", "beta2", "beta2_rest",
    "step_size", "second_scale", "eps", "slope", "momentum", "correction", "loss_scale",
}  # fmt: skip
# Neither 1 nor a multiple of 16, to which Triton would specialise.
INTEGER, LONG_INTEGER = 17, 2**40 + 1


class Case(NamedTuple):
    """One kernel in one configuration.

    Attributes:
        name: of the kernel with its constants, and of the configuration in brackets.
        kernel: decorated with triton.jit.
        arguments: all, in the order of the kernel, as at a launch; dtype and alignment matter of tensors.
        options: of the compiler.
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def variant(self) -> str:
        """The name without the configuration."""
        return self.name.split("[")[0]


def _case(
    name: str,
    kernel: Any,
    constants: dict[str, Any],
    options: dict[str, Any],
    pointers: dict[str, torch.dtype] | None = None,
) -> Case:
    """With arguments of the types that their names tell, or else ``pointers``."""
    arguments = {}
    for argument in kernel.arg_names:
        kind = re.sub(r"_\d(?=_ptr$|$)", "", argument)  # the same of several layers
        if argument in constants:
            arguments[argument] = constants[argument]
        elif argument.endswith("_ptr"):
            dtype = (POINTERS | (pointers or {})).get(kind, torch.float32)
            arguments[argument] = torch.empty(1, dtype=dtype)
        else:
            whole = LONG_INTEGER if argument == "numel" else INTEGER
            arguments[argument] = 0.5 if kind in FLOATS else whole
    return Case(name, kernel, arguments, options)


def _cases(
    name: str,
    kernel: Any,
    configs: tuple[Config, ...],
    inner: str = "",
    pointers: dict[str, torch.dtype] | None = None,
    **constants: Any,
) -> list[Case]:
    """``kernel`` in each of its configurations."""
    found = []
    for config in configs:
        values = {**constants, "BLOCK": config.block} | ({inner: config.inner} if inner else {})
        label = f"{name}[{config.block}x{config.inner}w{config.warps}]"
        found.append(_case(label, kernel, values, dict(config.options), pointers))
    return found


def _exact(name: str, kernel: Any, **constants: Any) -> Case:
    return _case(name, kernel, {**constants, "BLOCK": 512}, EXACT)


def all_cases() -> list[Case]:
    """Everything."""
    both = {"NEEDS_W0": True, "NEEDS_LOGITS": True}
    cases = [
        _exact("random_bits", philox.random_bits_kernel),
        _exact("logistic_from_bits", philox.logistic_from_bits_kernel),
        _exact("gumbel_mask", gumbel_mask.forward_kernel, HAS_CLOCK=False),
        _exact("gumbel_mask_clock", gumbel_mask.forward_kernel, HAS_CLOCK=True),
        _exact("gumbel_mask_backward", gumbel_mask.backward_kernel, **both),
        _exact("mask_update", mask_update.update_kernel, HAS_GRADIENT=True, HAS_VALUE=False, HAS_CLOCK=False),
        _exact(
            "mask_update_clock", mask_update.update_kernel, HAS_GRADIENT=True, HAS_VALUE=False, HAS_CLOCK=True
        ),
        _exact(
            "mask_update_kl_value",
            mask_update.update_kernel,
            HAS_GRADIENT=True,
            HAS_VALUE=True,
            HAS_CLOCK=False,
        ),
        _exact("masked_adam", masked_adam.update_kernel, HAS_MASK=False, HAS_CLOCK=False),
        _exact("masked_adam_mask", masked_adam.update_kernel, HAS_MASK=True, HAS_CLOCK=False),
        _exact("masked_adam_clock", masked_adam.update_kernel, HAS_MASK=False, HAS_CLOCK=True),
    ]
    tap_sum, weight_grad = sparse_taps.tap_sum_kernel, sparse_taps.weight_grad_kernel
    cases += _cases("tap_sum", tap_sum, sparse_taps.TAP_SUM_CONFIGS, "TAPS", ORDERED=True)
    wide = {"offsets_ptr": torch.int64}
    cases += _cases("tap_sum_64_bit", tap_sum, sparse_taps.TAP_SUM_CONFIGS[:1], "TAPS", wide, ORDERED=False)
    cases += _cases("weight_grad", weight_grad, sparse_taps.WEIGHT_GRAD_CONFIGS, "TAPS", ORDERED=True)
    for name in ("frame", "split", "merge"):
        cases += _cases(name, getattr(sparse_conv2d, f"{name}_kernel"), sparse_conv2d.COPY_CONFIGS)
    up = sparse_up_conv2d
    cases += _cases("up_add", up.add_kernel, up.ADD_CONFIGS)
    cases += _cases("up_spread", up.spread_kernel, up.SPREAD_CONFIGS)
    cases += _cases("take", up.take_kernel, up.TAKE_CONFIGS)
    cases += _norm_cases()
    cases += _cases(
        "running_stats", running_stats.move_kernel, (Config(128),), HAS_CHANNELS=True, HAS_OFFSET=True
    )
    cases += _cases("running_stats_layers", running_stats.move_layers_kernel, (Config(128),))
    head = {"OUTPUTS": 4, "SIGMOID": True}
    cases += _cases("head", output_head.forward_kernel, output_head.CONFIGS, HAS_BIAS=True, **head)
    needs = {"HAS_OUTPUT": True, "HAS_LOSS": True, "NEEDS_X": True, "NEEDS_WEIGHT": True}
    cases += _cases("head_backward", output_head.backward_kernel, output_head.CONFIGS, **needs, **head)
    return cases + _dense_cases()


def _dense_cases() -> list[Case]:
    cases = []
    kernels = {
        "dense": (masked_conv2d.forward_kernel, masked_conv2d.CONFIGS, {"HAS_BIAS": True}),
        "dense_input": (masked_conv2d.input_gradient_kernel, masked_conv2d.CONFIGS, {}),
        "dense_weight": (masked_conv2d.weight_gradient_kernel, masked_conv2d.WEIGHT_CONFIGS, {}),
    }
    for name, (kernel, configs, constants) in kernels.items():
        for place, config in enumerate(configs):
            for precision in masked_conv2d.PRECISIONS if place == 0 else ("float32",):
                values = {
                    **constants, "PRECISION": precision, "WIDEN": False,
                    "OUTER": config.outer, "INNER": config.inner, "BLOCK": config.block,
                }  # fmt: skip
                label = f"{name}_{precision}[{config.outer}x{config.inner}x{config.block}w{config.warps}]"
                options = {**config.options, "num_stages": config.stages}
                cases.append(_case(label, kernel, values, options))
    return cases


def _norm_cases() -> list[Case]:
    norm = batch_norm_act
    maps, sums = norm.MAP_CONFIGS, norm.SUM_CONFIGS
    affine = {"HAS_WEIGHT": True, "HAS_BIAS": True}
    block = sums[0].block
    cases = _cases("moments", norm.moments_kernel, sums[:1])
    for pad in (0, 2):
        given = {**affine, "ACTIVATION": 1, "PAD": pad}
        forward = {**given, "OF_BATCH": True, "SUM_BLOCK": block, "CHUNKS": 64}
        backward = {**given, "OF_BATCH": True, "CHUNKS": 64}
        backward |= {f"NEEDS_{name}": True for name in ("X", "WEIGHT", "BIAS")}
        cases += _cases(f"norm_pad{pad}", norm.forward_kernel, maps, **forward)
        of_sums, of_maps = (norm.FOLD_CONFIGS, norm.FOLD_CONFIGS) if pad else (sums, maps)
        cases += _cases(f"norm_sums_pad{pad}", norm.gradient_sums_kernel, of_sums, **given)
        cases += _cases(f"norm_backward_pad{pad}", norm.backward_kernel, of_maps, **backward)
    whole = batch_norm_act_whole
    for pad in (0, 2):
        given = {**affine, "ACTIVATION": 1, "PAD": pad}
        backward = {f"NEEDS_{name}": True for name in ("X", "WEIGHT", "BIAS")} | {"OF_BATCH": True, **given}
        configs = whole.PADDED_CONFIGS if pad else whole.CONFIGS
        cases += _cases(f"norm_whole_pad{pad}", whole.forward_kernel, configs, **given)
        cases += _cases(f"norm_whole_backward_pad{pad}", whole.backward_kernel, configs, **backward)
    for activation in (0, 2, 3):
        given = {**affine, "ACTIVATION": activation, "PAD": 2}
        forward = {**given, "OF_BATCH": False, "SUM_BLOCK": block, "CHUNKS": 64}
        cases += _cases(f"norm_act{activation}", norm.forward_kernel, maps[:1], **forward)
        cases += _cases(
            f"norm_sums_act{activation}", norm.gradient_sums_kernel, norm.FOLD_CONFIGS[:1], **given
        )
    return cases
