"""The generators by name: what the command line and :func:`oes_fast.fresh_generator` choose from."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from oes_fast._checks import check_integer, check_length
from oes_fast.errors import InputError
from oes_fast.models.base import ImageGenerator
from oes_fast.models.conv_decoder import conv_decoder
from oes_fast.models.dcgan import dcgan
from oes_fast.models.deep_decoder import DeepDecoder, deep_decoder
from oes_fast.models.resnet import resnet
from oes_fast.models.skip import skip
from oes_fast.models.skip_1d import skip_1d
from oes_fast.models.skip_3d import skip_3d
from oes_fast.models.unet import unet
from oes_fast.noise import draw_input
from oes_fast.recipe import Recipe

# Arguments that generator() fills in itself.
_OWN = ("num_output_channels", "size", "seed", "dtype", "device")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Model:
    """A generator by name.

    Attributes:
        name: in :data:`MODELS`.
        make: function of ``oes.models`` that makes the network; those that have an argument ``size`` crop to
            the image.
        input: (network, size of the image) -> (channels, *size) of its input z.
        dims: dimensions of its images: 1, 2 or 3.
        help: one line for people.

    Example:
        >>> oes.models.MODELS["unet"].options["feature_scale"]
        4
    """

    name: str
    make: Callable[..., ImageGenerator]
    input: Callable[[Any, tuple[int, ...]], tuple[int, ...]]
    dims: int
    help: str

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults: arguments of ``make``, without those that an image decides."""
        found = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in found if p.name not in _OWN}

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` for a name that is no option of this model."""
        for name in options:
            if name not in self.options:
                raise InputError(
                    f"options: expected options of {self.name}: {', '.join(self.options)}; got {name!r}"
                )

    def parse(self, option: str) -> tuple[str, Any]:
        """An option that a user wrote, by the type of the argument.

        Args:
            option: "KEY=VALUE" with a number, a name, true or false, none, or several separated by commas.

        Returns:
            (argument, value).

        Raises:
            InputError: no such option, or a value of another type.

        Example:
            >>> oes.models.MODELS["skip"].parse("num_channels_down=16,32,64")
            ('num_channels_down', [16, 32, 64])
        """
        name, equals, text = option.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"options: expected KEY=VALUE, got {option!r}")
        self.check({name: text})
        return name, _parsed(name, text.strip(), get_type_hints(self.make)[name])


def _input(net: ImageGenerator, size: tuple[int, ...]) -> tuple[int, ...]:
    channels = net.input_channels()
    assert channels is not None  # all of them have convolutions
    return (channels, *net.input_size(size))


@functools.wraps(deep_decoder)
def _deep_decoder(*, size: tuple[int, int], k: int = 5, **options: Any) -> DeepDecoder:
    """It crops only where it has to."""
    check_integer("k", k, minimum=1)
    fits = all(side % 2**k == 0 for side in size)
    return deep_decoder(k, size=None if fits else size, **options)


_MODELS = (
    Model("skip", skip, _input, 2, "encoder-decoder of deep image prior, as OES publishes it (the default)"),
    Model("unet", unet, _input, 2, "U-Net of the deep-image-prior code"),
    Model("resnet", resnet, _input, 2, "residual network of the deep-image-prior code"),
    Model("deep_decoder", _deep_decoder, _input, 2, "Deep Decoder: 1 x 1 convolutions and up-sampling"),
    Model("conv_decoder", conv_decoder, _input, 2, "ConvDecoder: convolutions and up-sampling, for MRI"),
    Model("dcgan", dcgan, _input, 2, "DCGAN generator: transposed convolutions"),
    Model("skip_1d", skip_1d, _input, 1, "skip over signals"),
    Model("skip_3d", skip_3d, _input, 3, "skip over volumes"),
)
MODELS: Mapping[str, Model] = types.MappingProxyType({model.name: model for model in _MODELS})


def find_model(name: str) -> Model:
    """The model of that name.

    Raises:
        InputError: there is none.
    """
    found = MODELS.get(name) if isinstance(name, str) else None
    if found is None:
        raise InputError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    return found


def network(
    name: str,
    shape: Sequence[int],
    *,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> ImageGenerator:
    """The network of :func:`generator` alone."""
    model = find_model(name)
    model.check(options)
    channels, *size = _checked_shape(model, shape)
    if "size" in inspect.signature(model.make).parameters:
        options = {**options, "size": tuple(size)}
    net = model.make(num_output_channels=channels, seed=seed, dtype=dtype, device=device, **options)
    options.pop("size", None)
    with contextlib.suppress(TypeError):  # a callable: no file could say what it was
        net.recipe = Recipe(name, json.loads(json.dumps(options)))
    return net


def plain_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model for images as JSON values (lists for tuples), for settings that are kept in files.

    Raises:
        InputError: ``model_options``, as it names them, is no dict, does not fit, or has other values.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"model_options: expected a dict, got {type(options).__name__}")
    try:
        made = network(name, (3, 256, 256), device="meta", **options)
    except InputError as error:
        raise InputError(f"model_options: {error}") from None
    if made.recipe is None:
        raise InputError(f"model_options: expected JSON values, got {dict(options)}")
    return dict(made.recipe.options)


def generator(
    name: str,
    shape: Sequence[int],
    *,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> tuple[ImageGenerator, Tensor]:
    """A generator by name with fresh weights for an image, and its input.

    Args:
        name: one of :data:`MODELS`.
        shape: of the image: (C, H, W); (C, L) for "skip_1d", (C, D, H, W) for "skip_3d".
        seed: of the weights and of z, in [0, 2^64). None draws the weights from the global random state, and
            z from seed 0.
        dtype: of both, float32 or float64; None for torch.get_default_dtype().
        device: of both; None for torch.get_default_device().
        **options: of the function of that name in ``oes.models``; ``MODELS[name].options`` has them with
            their defaults.

    Returns:
        (net, z): net(z) is an image [1, *shape]. What z's size is follows from the model: that of the image,
        or less for decoders.

    Raises:
        InputError: no such model or option, an option or a shape is out of range.

    Example:
        >>> net, z = oes.models.generator("deep_decoder", (3, 100, 64), seed=0, k=3, num_channels=16)
        >>> z.shape, net(z).shape
        (torch.Size([1, 16, 13, 8]), torch.Size([1, 3, 100, 64]))
    """
    net = network(name, shape, seed=seed, dtype=dtype, device=device, **options)
    channels, *size = find_model(name).input(net, tuple(shape[1:]))
    weight = next(net.parameters())
    z = draw_input(channels, size, seed=0 if seed is None else seed, dtype=weight.dtype, device=weight.device)
    return net, z


def parsed_options(name: str, options: Iterable[str]) -> dict[str, Any]:
    """Options that a user wrote as KEY=VALUE, see :meth:`Model.parse`.

    Raises:
        InputError: no such model or option, a value of another type, or an option that comes twice.
    """
    model = find_model(name)
    found: dict[str, Any] = {}
    for option in options:
        key, value = model.parse(option)
        if key in found:
            raise InputError(f"options: expected each once, got {key} twice")
        found[key] = value
    return found


def _checked_shape(model: Model, shape: Sequence[int]) -> list[int]:
    names = {1: "(C, L)", 2: "(C, H, W)", 3: "(C, D, H, W)"}
    check_length("shape", shape, 1 + model.dims, f"{names[model.dims]} of an image for {model.name}")
    return [check_integer("shape", side, minimum=1) for side in shape]


def _parsed(name: str, text: str, kind: Any) -> Any:
    """``text`` as a value of a type of the options: int, bool, str, sequences of them, None."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    elements = next((get_args(k)[0] for k in kinds if get_origin(k) is Sequence), None)
    if text.lower() == "none" and type(None) in kinds and str not in kinds:
        return None
    if elements is not None and ("," in text or elements not in kinds):
        return [_scalar(name, part.strip(), (elements,)) for part in text.split(",") if part.strip()]
    return _scalar(name, text, kinds)


def _scalar(name: str, text: str, kinds: tuple[Any, ...]) -> Any:
    if bool in kinds:
        if text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
        raise InputError(f"{name}: expected true or false, got {text!r}")
    if int in kinds:
        try:
            number = int(text)
        except ValueError:
            raise InputError(f"{name}: expected a whole number, got {text!r}") from None
        return check_integer(name, number, minimum=-(2**31), below=2**31)
    return text
