"""Weights from PyTorch and back, bit for bit: `nn.GRU`, `nn.GRUCell`, and `nn.GRU` with an `nn.Linear` behind it.

Matrices stand transposed here, `w_ih` (I, 3H); both biases are kept and nothing is lost.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require, require_package
from grujax.interop.adapters import Adapter, Runner, check_archive, require_agreement
from grujax.interop.state_dicts import from_arrays, read_names, to_arrays
from grujax.interop.weight_layouts import DTYPES, FLOATS

if TYPE_CHECKING:
    import torch


def from_torch(
    module_or_state_dict: "torch.nn.Module | Mapping[str, torch.Tensor]", *, verify: bool = False
) -> tuple[nn.Module, dict]:
    """The model and variables that compute what a torch module computes, sizes and dtype read off its tensors.

    - `nn.GRU` -> `grujax.GRU` (with its dropout; a state dict does not hold dropout, nor batch_first: x is (B, T, I));
    - `nn.GRUCell` -> `grujax.GRUCell`;
    - a module of one `nn.GRU` and one `nn.Linear`, by whatever names -> `grujax.GRUModel(pooling="last", dropout=0)`.
      Its `forward` is not read: this is the module that applies the Linear to the last state of each direction. For one
      direction and no padding that is `output[:, -1]`; for two it is not, whose reverse part has read one step only.

    A state dict serves as well as a module. The arrays are copies.

    Args:
      verify: run both sides on random data; the largest difference is logged (logger "grujax.interop", INFO), and one
        past the tolerance table raises.

    Raises:
      InputError: naming the key, what was expected and what was found; nothing is skipped, guessed or cast.

    >>> import jax, torch
    >>> model, variables = from_torch(torch.nn.GRU(10, 20, num_layers=2))
    >>> jax.tree.map(jax.numpy.shape, variables["params"]["l1"]["w_ih"])
    (20, 60)
    """
    state, dropout = _state(module_or_state_dict)
    of_layers = {"dropout": dropout} if dropout else {}
    model, variables = from_arrays(arrays(state), **of_layers)
    if verify:
        require_agreement(model, variables, runner(state, model), "module_or_state_dict")
    return model, variables


def to_torch(
    model: nn.Module, variables: Mapping, gru: str = "gru", head: str = "output_layer", *, verify: bool = False
) -> dict:
    """The state dict of the torch module that computes what `model` computes: the inverse of `from_torch`, bit for bit.

    Args:
      model: a `GRU`, `GRUCell` or `GRUModel`.
      variables: its variables, `{"params": ...}` alone.
      gru, head: the attributes that the torch class of a `GRUModel` keeps its `nn.GRU` and `nn.Linear` under.
      verify: see `from_torch`.

    Returns:
      dict of key -> contiguous tensor of its own, for `module.load_state_dict`.

    Raises:
      InputError: what torch has no place for: `reset_after=False`, a pooling other than "last", statistics.

    >>> import jax, jax.numpy as jnp
    >>> from grujax import GRUModel
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> state = to_torch(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> state["gru.weight_ih_l0"].shape, state["output_layer.weight"].shape
    (torch.Size([60, 10]), torch.Size([5, 20]))
    """
    _torch()
    state = tensors(to_arrays(model, variables, gru, head))
    if verify:
        require_agreement(model, variables, runner(state, model), "model")
    return state


def tensors(arrays: Mapping[str, NDArray]) -> dict[str, "torch.Tensor"]:
    """Torch's view of NumPy arrays, in the same memory."""
    torch = _torch()

    def tensor(a: NDArray) -> "torch.Tensor":
        if a.dtype == jnp.bfloat16:  # NumPy's is not known to torch: its bits travel as integers
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    return {key: tensor(a) for key, a in arrays.items()}


def arrays(tensors: Mapping) -> dict[str, NDArray]:
    """The other way round."""
    torch, found = _torch(), {}
    for key, tensor in tensors.items():
        require(isinstance(tensor, torch.Tensor), key, "a torch.Tensor", type(tensor).__name__)
        require(not tensor.is_meta, key, "values", "a tensor on the meta device")
        dtype = str(tensor.dtype).removeprefix("torch.")
        require(dtype in DTYPES, key, FLOATS, f"dtype {dtype}")
        tensor = tensor.detach().cpu().contiguous()
        bfloat16 = tensor.dtype == torch.bfloat16
        found[key] = tensor.view(torch.int16).numpy().view(jnp.bfloat16) if bfloat16 else tensor.numpy()
    return found


def runner(state: Mapping, model: nn.Module) -> Runner:
    """torch itself, on a module built for the state dict."""
    torch, names = _torch(), read_names(state)
    of = {key.removeprefix(names.gru): tensor for key, tensor in state.items() if key.startswith(names.gru)}
    w_hh = of[f"weight_hh{names.suffixes[0]}"]
    sizes = {"input_size": of[f"weight_ih{names.suffixes[0]}"].shape[1], "hidden_size": w_hh.shape[1]}
    sizes |= {"bias": names.bias, "dtype": w_hh.dtype}
    if names.suffixes == [""]:
        module = torch.nn.GRUCell(**sizes)
    else:
        directions = 1 + names.bidirectional
        module = torch.nn.GRU(
            **sizes,
            num_layers=len(names.suffixes) // directions,
            bidirectional=names.bidirectional,
            batch_first=True,
        )
    module.load_state_dict({key: of[key] for key in module.state_dict()})

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        def tensor(a: NDArray | None) -> Any:
            return None if a is None else torch.tensor(a.astype(np.float64)).to(w_hh.dtype)

        def array(t: Any) -> NDArray:
            return t.double().numpy()

        with torch.no_grad():
            if names.suffixes == [""]:
                return {"h_last": array(module(tensor(x), tensor(h0)))}
            read, n_steps = tensor(x), x.shape[1]
            if lengths is not None:
                of_rows = torch.tensor(lengths, dtype=torch.int64)
                read = torch.nn.utils.rnn.pack_padded_sequence(read, of_rows, batch_first=True, enforce_sorted=False)
            output, h_last = module(read, tensor(h0))
            if lengths is not None:
                output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=n_steps)
            if names.head is None:
                return {"output": array(output), "h_last": array(h_last)}
            features = torch.cat([*h_last[-1 - names.bidirectional :]], -1)
            y = torch.nn.functional.linear(features, state[f"{names.head}weight"], state[f"{names.head}bias"])
            return {"y": array(y), "h_last": array(h_last)}

    return Runner(call, takes_lengths=names.suffixes != [""])


def load(path: Path) -> Mapping:
    """The state dict in a `.pt` or `.pth` file, read with `weights_only=True`: no pickle of it is run."""
    torch = _torch()
    remedy = "Save module.state_dict(), or call from_torch on the module where its class is at hand."
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError("path", "tensors alone", "other pickled objects", remedy) from error
    except Exception as error:  # torch has no class of errors for what is no file of its own
        found = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        raise InputError("path", "a file that torch.save wrote", found) from error
    require(isinstance(state, Mapping), "path", "a state dict", type(state).__name__, remedy)
    for key, tensor in state.items():
        require(isinstance(key, str), "path", "keys that are text", repr(key))
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:  # a view may claim more than its memory holds
            claimed, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
            require(claimed <= there, key, f"at most the {there} bytes stored for it", f"shape {tuple(tensor.shape)}")
    return state


def store(path: Path, state: Mapping) -> None:
    _torch().save(dict(state), path)


ADAPTER = Adapter("torch", (".pt", ".pth"), load, from_torch, to_torch, store, runner)


def _torch() -> Any:
    return require_package("torch", "torch")


def _state(source: Any) -> tuple[Mapping, float]:
    """The state dict, and the dropout between layers, which only an `nn.GRU` itself tells."""
    nn = _torch().nn
    if not isinstance(source, nn.Module):
        require(
            isinstance(source, Mapping), "module_or_state_dict", "a torch.nn.Module or its state dict", type(source)
        )
        return source, 0.0
    if isinstance(source, (nn.GRU, nn.GRUCell)):
        return source.state_dict(), getattr(source, "dropout", 0.0)
    served = "nn.GRU, nn.GRUCell, or a module made of one nn.GRU, one nn.Linear, nn.Dropout and nn.Identity"
    for name, layer in source.named_modules():
        if not next(layer.children(), None) and not isinstance(layer, (nn.GRU, nn.Linear, nn.Dropout, nn.Identity)):
            raise InputError(name or "module_or_state_dict", served, f"nn.{type(layer).__name__}")
    return source.state_dict(), 0.0
