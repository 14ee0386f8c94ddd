"""Random base models of a few thousand weights, built in code: no downloads."""

from tests.tiny.flux import SIZE, save_tiny, tiny_flux, tiny_pipeline
from tests.tiny.text import T5_TOKENS

__all__ = ["SIZE", "T5_TOKENS", "save_tiny", "tiny_flux", "tiny_pipeline"]
