"""Models on disk: one safetensors file, written whole or not at all."""

from grujax.saving.atomic import remove_left_over, replacing
from grujax.saving.model_file import (
    MODEL_FILE,
    Saved,
    declared,
    find_model_file,
    load,
    opened,
    read,
    save,
)

__all__ = [
    "MODEL_FILE",
    "Saved",
    "declared",
    "find_model_file",
    "load",
    "opened",
    "read",
    "remove_left_over",
    "replacing",
    "save",
]
