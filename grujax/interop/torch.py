"""Weights from PyTorch and back, bit for bit: `nn.GRU`, `nn.GRUCell`, modules of one GRU and an `nn.Linear`.

grujax stores the matrices transposed, `w_ih` as (I, 3H). It has both biases too, so nothing is lost.
"""

from collections.abc import Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import Pooling
from grujax.core.dialects import FLOATS, require_floats
from grujax.errors import InputError, require, require_one_of, require_package
from grujax.interop.framework import Framework
from grujax.interop.parts import require_alone
from grujax.interop.prove import FIND, Runner
from grujax.interop.torch_keys import KEY, effective, from_arrays, gru_at, to_arrays, unwrapped
from grujax.linen import GRUCell, GRUModel

if TYPE_CHECKING:
    import torch


def from_torch(
    module_or_state_dict: "torch.nn.Module | Mapping[str, torch.Tensor]",
    *,
    pooling: Pooling | EllipsisType = ...,
    prefix: str | None = None,
    verify: bool | None = None,
) -> tuple[nn.Module, dict]:
    """Returns the model and variables of a torch module or state dict. See `grujax.interop`.

    - `nn.GRU` -> `grujax.GRU` (with its dropout; a state dict has neither dropout nor batch_first: x is (B, T, I));
    - `nn.GRUCell` -> `grujax.GRUCell`;
    - a module of one `nn.GRU`, or of `nn.GRUCell`s, with or without an `nn.Linear`, under any names: the module is run
      and compared with all models that grujax has (by what the Linear reads, a sigmoid or softmax after it, time or
      batch first). The model that agrees is returned; if none does, an error shows the differences.

    The source may also be a checkpoint with a state dict in it, or NumPy arrays under torch's keys; these need no
    torch. Weights that are computed, for instance by `weight_norm`, are read as their effective values.

    Args:
      pooling: what the Linear of a state dict reads, see `grujax.GRUModel`; the state dict does not contain this. By
        default the last state of each direction is assumed, and a warning is logged (logger "grujax.interop"). With one
        direction and no padding that is `output[:, -1]`. With two it is not: there the reverse half of `output[:, -1]`
        has read only one step.
      prefix: the name of the one GRU to take; the rest is ignored. `grujax.interop.find` lists the names.

    Raises:
      InputError: the source is not such a module or state dict, or something would be lost.

    >>> import jax, torch
    >>> model, variables = from_torch(torch.nn.GRU(10, 20, num_layers=2))
    >>> jax.tree.map(jax.numpy.shape, variables["params"]["l1"]["w_ih"])
    (20, 60)
    """
    require_alone(prefix, pooling)
    if not isinstance(module_or_state_dict, Mapping):
        if not isinstance(module_or_state_dict, _torch().nn.Module):
            raise InputError(STATE.argument, "a torch.nn.Module or its state dict", type(module_or_state_dict))
        from grujax.interop.torch_live import from_module

        return from_module(module_or_state_dict, pooling, prefix, verify is not False)
    state = unwrapped(module_or_state_dict)
    if prefix is not None:
        start = f"{prefix}." if prefix else ""
        state = gru_at(effective(arrays({key: a for key, a in state.items() if key.startswith(start)})), start)
    return STATE.imported(state, verify, pooling=pooling)


def to_torch(
    model: nn.Module, variables: Mapping, gru: str = "gru", head: str = "output_layer", *, verify: bool = False
) -> dict:
    """Returns the state dict of a `GRU`, `GRUCell` or `GRUModel`, bit for bit: contiguous tensors that share no memory.

    The head of a model must read the last state or, with `pooling=None`, every step.

    Args:
      gru, head: for a `GRUModel`, the names of the `nn.GRU` and the `nn.Linear` in your torch class. Other models have
        no such names.

    Raises:
      InputError: torch cannot represent something that the outputs depend on.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> state = to_torch(model, model.init(jax.random.key(0), jnp.ones((3, 7, 10))))
    >>> state["gru.weight_ih_l0"].shape, state["output_layer.weight"].shape
    (torch.Size([60, 10]), torch.Size([5, 20]))
    """
    return STATE.exported(model, variables, verify, gru=gru, head=head)


def tensors(arrays: Mapping[str, NDArray]) -> dict[str, "torch.Tensor"]:
    """Torch tensors that share memory with NumPy arrays."""
    torch = _torch()

    def tensor(a: NDArray) -> "torch.Tensor":
        if a.dtype == jnp.bfloat16:  # torch does not know NumPy's bfloat16: pass the bits as integers
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    return {key: tensor(a) for key, a in arrays.items()}


def arrays(tensors: Mapping) -> dict[str, NDArray]:
    """The inverse of `tensors`; NumPy arrays stay as they are."""
    result = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            result[key] = tensor
            continue
        torch = _torch()
        remedy = "Pass the state dict itself." if hasattr(tensor, "keys") else ""
        require(isinstance(tensor, torch.Tensor), key, "a torch.Tensor", type(tensor).__name__, remedy)
        lazy = hasattr(tensor, "materialize")
        require(not lazy, key, "values", f"an {type(tensor).__name__}", "Run the lazy module once.")
        require(not tensor.is_meta, key, "values", "a tensor on the meta device")
        strided = tensor.layout is torch.strided
        if strided and not tensor.is_quantized:  # a view may claim more than its memory holds
            claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
            require(claimed <= stored, key, f"at most the {stored} bytes stored for it", f"shape {tuple(tensor.shape)}")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not (strided and dtype == "int64" and not tensor.ndim):  # normalisation layers count batches
            require_floats(key, dtype if strided or dtype not in FLOATS else str(tensor.layout), FIND)
        tensor = tensor.detach().cpu().resolve_neg().contiguous()
        bfloat16 = tensor.dtype == torch.bfloat16
        result[key] = tensor.view(torch.int16).numpy().view(jnp.bfloat16) if bfloat16 else tensor.numpy()
    return result


def _run(state: Mapping, model: Any) -> Runner:
    """Runs torch on a module with the state dict. Its Linear reads what the model's head reads, pooled in NumPy."""
    torch, rest = _torch(), tensors(effective(arrays(unwrapped(state))))
    weights = {m.string.removeprefix(m["prefix"]): rest.pop(key) for key in [*rest] if (m := KEY.fullmatch(key))}
    w_ih = next(a for key, a in weights.items() if key.startswith("weight_ih"))
    sizes = {"input_size": w_ih.shape[1], "hidden_size": model.hidden_size, "bias": model.bias, "dtype": w_ih.dtype}
    if isinstance(model, GRUCell):
        module = torch.nn.GRUCell(**sizes)
    else:
        kinds = {"num_layers": model.num_layers, "bidirectional": model.bidirectional, "batch_first": True}
        module = torch.nn.GRU(**sizes, **kinds)
    module.load_state_dict(weights)
    runner = gru_runner(module)
    if not isinstance(model, GRUModel):
        return runner
    require_one_of(model.pooling, ("last", "mean", "max", None), "pooling", "Others cannot be run: leave verify out.")
    linear = [next((a for key, a in rest.items() if key.endswith(f".{kind}")), None) for kind in ("weight", "bias")]

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        result, steps = runner.call(x, h0, lengths), x.shape[1] if lengths is None else lengths[:, None]
        output, last = result["output"], [*result["h_last"][-model.num_directions :]]
        valid = (np.arange(x.shape[1]) < steps)[..., None]
        features = {
            "last": lambda: np.concatenate(last, -1),
            "mean": lambda: output.sum(1, where=valid) / steps,
            "max": lambda: output.max(1, where=valid, initial=-np.inf),
            None: lambda: output,
        }[model.pooling]()
        with torch.no_grad():
            y = torch.nn.functional.linear(torch.tensor(features).to(w_ih.dtype), *linear).double().numpy()
        if model.pooling is None:
            y = y * valid
        return {"y": y, "h_last": result["h_last"]}

    return runner._replace(call=call)


def gru_runner(module: Any) -> Runner:
    """Runs an `nn.GRU` or `nn.GRUCell` itself; rows with lengths are packed."""
    torch, single = _torch(), isinstance(module, _torch().nn.GRUCell)
    parameter, rnn = next(module.parameters()), _torch().nn.utils.rnn

    def tensor(a: NDArray) -> Any:
        return torch.tensor(a.astype(np.float64)).to(parameter.dtype).to(parameter.device)

    def array(t: Any) -> NDArray:
        return t.double().cpu().numpy()

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        with torch.no_grad():
            state = None if h0 is None else tensor(h0)
            if single:
                return {"h_last": array(module(tensor(x), state))}
            first = module.batch_first
            packed: Any = tensor(x if first else x.swapaxes(0, 1))
            if lengths is not None:
                steps = torch.tensor(lengths, dtype=torch.int64)
                packed = rnn.pack_padded_sequence(packed, steps, batch_first=first, enforce_sorted=False)
            output, h_last = module(packed, state)
            if lengths is not None:
                output, _ = rnn.pad_packed_sequence(output, batch_first=first, total_length=x.shape[1])
            output = array(output)
            return {"output": output if first else output.swapaxes(0, 1), "h_last": array(h_last)}

    return Runner(call, takes_lengths=not single)


def _torch() -> Any:
    return require_package("torch", "torch")


STATE = Framework(
    "torch",
    lambda state, **options: from_arrays(arrays(unwrapped(state)), **options),
    lambda *args, **names: _torch() and tensors(to_arrays(*args, **names)),
    _run,
    "module_or_state_dict",
    classes="torch.Module",
    assumes=True,
)
"""State dicts in memory; those in files are in `grujax.interop.torch_files`."""
