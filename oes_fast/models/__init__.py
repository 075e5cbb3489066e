"""Image generators of the deep-image-prior family."""

from oes_fast.models.deep_decoder import DeepDecoder, deep_decoder, deep_decoder_input
from oes_fast.models.base import Concat, Generator
from oes_fast.models.skip import skip

__all__ = ["Concat", "DeepDecoder", "Generator", "deep_decoder", "deep_decoder_input", "skip"]
