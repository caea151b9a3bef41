"""Folders that hold a model: orbax's are read and written, TensorFlow's named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grujax.errors import InputError, require


def folder_tree(path: Path) -> tuple[None, Mapping[str, Any]]:
    """The parameters in a folder that orbax wrote, as `grujax.interop.flax` has them, without a module.

    Raises:
      InputError: another folder, by what it is.
    """
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    remedy = "Keras: model.save('model.keras'); or export it to ONNX with tf2onnx."
    require("saved_model.pb" not in names, "path", "a model file", f"a SavedModel of TensorFlow at {path}", remedy)
    inside = [path / name for name in ("default", "params", "state") if (path / name).is_dir()]
    of_orbax = bool(names & {"_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA"})
    require(of_orbax, "path", "a file", f"none at {path}", "A folder is read where orbax wrote it.")
    import orbax.checkpoint as ocp  # Flax brings it

    for folder in (path, *inside):
        if (folder / "_METADATA").exists():
            try:
                with ocp.PyTreeCheckpointer() as checkpointer:
                    metadata = checkpointer.metadata(folder.absolute()).item_metadata.tree
                    numbers = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
                    return None, checkpointer.restore(folder.absolute(), restore_args=numbers)
            except Exception as error:  # whatever tensorstore and orbax raise for what is not whole
                raise InputError("path", "a whole folder of orbax", f"{type(error).__name__} at {path}") from error
    raise InputError("path", "a folder of orbax with a tree of arrays", f"{sorted(names)[:5]} at {path}")


def store_folder(path: Path, tree: Mapping[str, Any]) -> None:
    """Orbax writes beside `path` and renames."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)
