"""Models on disk: one safetensors file, written whole or not at all."""

from grujax.saving.model_file import (
    MODEL_FILE,
    Saved,
    declared,
    find_model_file,
    load,
    opened,
    read,
    replacing,
    save,
)

__all__ = ["MODEL_FILE", "Saved", "declared", "find_model_file", "load", "opened", "read", "replacing", "save"]
