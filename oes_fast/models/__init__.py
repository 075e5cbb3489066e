"""Image generators of the deep-image-prior family."""

from oes_fast.models.generator import Concat, Generator
from oes_fast.models.skip import skip

__all__ = ["Concat", "Generator", "skip"]
