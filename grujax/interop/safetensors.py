"""Safetensors in torch's dialect: torch's keys and the metadata `format: pt`; PyTorch loads the file as it is.

Grujax's own model files are safetensors too; their metadata key `grujax` tells them apart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.errors import require
from grujax.interop.adapters import Adapter, Runner
from grujax.interop.state_dicts import from_arrays, to_arrays
from grujax.interop.torch import runner as torch_runner
from grujax.interop.torch import tensors
from grujax.saving.model_file import opened

METADATA = {"format": "pt"}


class Stored(NamedTuple):
    """What the file holds."""

    arrays: dict[str, NDArray]
    metadata: dict[str, str]


def from_safetensors(stored: Stored) -> tuple[nn.Module, dict]:
    """The model and variables of what `safetensors.torch.save_file(module.state_dict(), path)` wrote.

    Raises:
      InputError: as `grujax.interop.torch.from_torch`, of which this is the form without torch.
    """
    return from_arrays(stored.arrays)


def to_safetensors(model: nn.Module, variables: Mapping) -> Stored:
    """What `load_file` of PyTorch gives back is the module's state dict; see `grujax.interop.torch.to_torch`."""
    return Stored(to_arrays(model, variables), METADATA)


def load(path: Path) -> Stored:
    with opened(path) as file:
        metadata = file.metadata() or {}
        own = "This is a grujax model file: grujax.load reads it, as does format='grujax'."
        require("grujax" not in metadata, "path", "torch's key names", "the metadata key 'grujax'", own)
        return Stored({key: file.get_tensor(key) for key in file.keys()}, metadata)  # noqa: SIM118, not a dict


def store(path: Path, stored: Stored) -> None:
    import safetensors.numpy

    arrays = {key: np.ascontiguousarray(a) for key, a in stored.arrays.items()}
    path.write_bytes(safetensors.numpy.save(arrays, stored.metadata))


def runner(stored: Stored, model: nn.Module) -> Runner:
    return torch_runner(tensors(stored.arrays), model)


ADAPTER = Adapter("safetensors", (".safetensors",), load, from_safetensors, to_safetensors, store, runner)
