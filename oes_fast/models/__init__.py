"""Image generators: the networks that deep image prior and its successors publish, and a list of them."""

from oes_fast.models.base import Concat, Generator, ImageGenerator
from oes_fast.models.conv_decoder import ConvDecoder, conv_decoder
from oes_fast.models.dcgan import DCGAN, dcgan
from oes_fast.models.deep_decoder import DeepDecoder, deep_decoder, deep_decoder_input
from oes_fast.models.registry import MODELS, Model, generator
from oes_fast.models.resnet import ResNet, resnet
from oes_fast.models.skip import skip
from oes_fast.models.skip_1d import skip_1d
from oes_fast.models.skip_3d import skip_3d
from oes_fast.models.unet import UNet, unet

__all__ = [
    "DCGAN",
    "MODELS",
    "Concat",
    "ConvDecoder",
    "DeepDecoder",
    "Generator",
    "ImageGenerator",
    "Model",
    "ResNet",
    "UNet",
    "conv_decoder",
    "dcgan",
    "deep_decoder",
    "deep_decoder_input",
    "generator",
    "resnet",
    "skip",
    "skip_1d",
    "skip_3d",
    "unet",
]
