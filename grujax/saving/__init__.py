"""Models on disk: one safetensors file, written whole or not at all."""

from grujax.saving.model_file import Saved, load, read, save

__all__ = ["Saved", "load", "read", "save"]
