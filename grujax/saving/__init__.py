"""Saving and loading of models, as one safetensors file that is written completely or not at all."""

from grujax.saving.model_file import Saved, load, read, save

__all__ = ["Saved", "load", "read", "save"]
