"""Weights from PyTorch and back, bit for bit: `nn.GRU`, `nn.GRUCell`, modules of one GRU and an `nn.Linear`.

Matrices stand transposed here, `w_ih` (I, 3H); both biases are kept and nothing is lost.
"""

from collections.abc import Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import Pooling
from grujax.errors import InputError, require, require_package
from grujax.interop.prove import FIND, Runner, require_agreement
from grujax.interop.torch_keys import from_arrays, read_names, to_arrays, unwrapped
from grujax.interop.weight_layouts import DTYPES, FLOATS, remedy_of

if TYPE_CHECKING:
    import torch


def from_torch(
    module_or_state_dict: "torch.nn.Module | Mapping[str, torch.Tensor]",
    *,
    pooling: Pooling | EllipsisType = ...,
    prefix: str | None = None,
    verify: bool | None = None,
) -> tuple[nn.Module, dict]:
    """The model and variables that compute what a torch module computes, sizes and dtype read off its tensors.

    - `nn.GRU` -> `grujax.GRU` (with its dropout; a state dict does not hold dropout, nor batch_first: x is (B, T, I));
    - `nn.GRUCell` -> `grujax.GRUCell`;
    - a module of one `nn.GRU`, or of `nn.GRUCell`s, with or without an `nn.Linear`, by whatever names: it is run, and
      of all that grujax has (what the Linear reads, a sigmoid or softmax behind it, time or batch first) that is taken
      which gives the same; where nothing does, it is refused with the differences.

    A state dict serves as well as a module, or a checkpoint with one in it. What its Linear reads it does not tell.
    Weights are the effective ones, of `weight_norm` for instance. The arrays are copies.

    Args:
      pooling: what the Linear of a state dict reads, see `grujax.GRUModel`. Not given, it is taken to be the last state
        of each direction, and a warning is logged (logger "grujax.interop"). For one direction and no padding that is
        `output[:, -1]`; for two it is not, whose reverse part has read one step only.
      prefix: the name of the GRU that is taken, all else left; `grujax.interop.find` lists them.
      verify: run both sides on random data; the largest difference is logged, and one past the tolerance table raises.
        None does so with a module, which can be run itself.

    Raises:
      InputError: naming the key, what was expected and what was found; nothing is skipped, guessed or cast.

    >>> import jax, torch
    >>> model, variables = from_torch(torch.nn.GRU(10, 20, num_layers=2))
    >>> jax.tree.map(jax.numpy.shape, variables["params"]["l1"]["w_ih"])
    (20, 60)
    """
    torch, argument = _torch(), "module_or_state_dict"
    if isinstance(module_or_state_dict, torch.nn.Module):
        from grujax.interop.torch_live import from_module

        return from_module(module_or_state_dict, pooling, prefix, verify is not False)
    if not isinstance(module_or_state_dict, Mapping):
        raise InputError(argument, "a torch.nn.Module or its state dict", type(module_or_state_dict))
    start = "" if not prefix else f"{prefix}."
    state = unwrapped(module_or_state_dict)
    state = arrays({key: a for key, a in state.items() if prefix is None or key.startswith(start)})
    model, variables = from_arrays(state, pooling, prefix)
    if verify:
        alone = to_arrays(model, variables) if prefix is not None else state
        require_agreement(model, variables, runner(tensors(alone), model), argument)
    return model, variables


def to_torch(
    model: nn.Module, variables: Mapping, gru: str = "gru", head: str = "output_layer", *, verify: bool = False
) -> dict:
    """The state dict of the torch module that computes what `model` computes: the inverse of `from_torch`, bit for bit.

    Args:
      model: a `GRU`, `GRUCell` or `GRUModel`; its head reads the last state or, with `pooling=None`, every step.
      variables: its variables, `{"params": ...}` alone.
      gru, head: the attributes that the torch class of a `GRUModel` keeps its `nn.GRU` and `nn.Linear` under.
      verify: see `from_torch`.

    Returns:
      dict of key -> contiguous tensor of its own, for `module.load_state_dict`.

    Raises:
      InputError: what torch has no place for: `reset_after=False`, pooling by mean or maximum, statistics.

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
    """The other way round; arrays of NumPy stay as they are."""
    torch, found = _torch(), {}
    for key, tensor in tensors.items():
        if isinstance(tensor, np.ndarray):
            found[key] = tensor
            continue
        require(isinstance(tensor, torch.Tensor), key, "a torch.Tensor", type(tensor).__name__)
        require(not tensor.is_meta, key, "values", "a tensor on the meta device")
        if tensor.layout is torch.strided and not tensor.is_quantized:
            # A view may claim more than its memory holds.
            claimed, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
            whole = claimed <= there
            require(whole, key, f"at most the {there} bytes stored for it", f"shape {tuple(tensor.shape)}")
        dtype = str(tensor.dtype).removeprefix("torch.")
        plain = tensor.layout is torch.strided and (dtype in DTYPES or (dtype == "int64" and not tensor.ndim))
        require(plain, key, FLOATS, f"dtype {dtype}", remedy_of(dtype) or FIND)
        tensor = tensor.detach().cpu().contiguous()
        bfloat16 = tensor.dtype == torch.bfloat16
        found[key] = tensor.view(torch.int16).numpy().view(jnp.bfloat16) if bfloat16 else tensor.numpy()
    return found


def runner(state: Mapping, model: nn.Module) -> Runner:
    """torch itself, on a module built for the state dict; its Linear reads what the model's head does."""
    torch, names = _torch(), read_names(state)
    of = {key.removeprefix(names.gru): tensor for key, tensor in state.items() if key.startswith(names.gru)}
    w_hh = of[f"weight_hh{names.suffixes[0]}"]
    sizes = {"input_size": of[f"weight_ih{names.suffixes[0]}"].shape[1], "hidden_size": w_hh.shape[1]}
    sizes |= {"bias": names.bias, "dtype": w_hh.dtype}
    if names.suffixes == [""]:
        module = torch.nn.GRUCell(**sizes)
    else:
        num_layers = len(names.suffixes) // (1 + names.bidirectional)
        sizes |= {"num_layers": num_layers, "bidirectional": names.bidirectional, "batch_first": True}
        module = torch.nn.GRU(**sizes)
    module.load_state_dict({key: of[key] for key in module.state_dict()})
    found = gru_runner(module)
    if names.head is None:
        return found
    weight, bias = state[f"{names.head}weight"], state.get(f"{names.head}bias")

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        given = found.call(x, h0, lengths)
        every, directions = getattr(model, "pooling", "last") is None, 1 + names.bidirectional
        features = given["output"] if every else np.concatenate([*given["h_last"][-directions:]], -1)
        with torch.no_grad():
            y = torch.nn.functional.linear(torch.tensor(features).to(w_hh.dtype), weight, bias).double().numpy()
        if every and lengths is not None:
            y = y * (np.arange(x.shape[1]) < lengths[:, None])[..., None]
        return {"y": y, "h_last": given["h_last"]}

    return found._replace(call=call)


def gru_runner(module: Any) -> Runner:
    """An `nn.GRU` or `nn.GRUCell`, run as it is, padded rows packed."""
    torch, single = _torch(), isinstance(module, _torch().nn.GRUCell)
    parameter = next(module.parameters())

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
            read: Any = tensor(x if first else x.swapaxes(0, 1))
            if lengths is not None:
                of_rows = torch.tensor(lengths, dtype=torch.int64)
                pack = torch.nn.utils.rnn.pack_padded_sequence
                read = pack(read, of_rows, batch_first=first, enforce_sorted=False)
            output, h_last = module(read, state)
            if lengths is not None:
                pad = torch.nn.utils.rnn.pad_packed_sequence
                output, _ = pad(output, batch_first=first, total_length=x.shape[1])
            found = array(output)
            return {"output": found if first else found.swapaxes(0, 1), "h_last": array(h_last)}

    return Runner(call, takes_lengths=not single)


def _torch() -> Any:
    return require_package("torch", "torch")
