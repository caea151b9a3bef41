"""A live module of torch: its effective weights, and what it computes, found by running it."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

import flax.linen as nn
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import Pooling
from grujax.errors import InputError, require, require_one_of
from grujax.interop.hypotheses import Places, Seen, read_by_running
from grujax.interop.parts import assumed_pooling, put_together
from grujax.interop.prove import FIND, data, log, proof_sizes, require_agreement
from grujax.interop.torch import STATE, _torch, arrays, gru_runner
from grujax.interop.torch_keys import KINDS, from_arrays, read_state

ARGUMENT = STATE.argument


def from_module(
    module: Any, pooling: Pooling | EllipsisType, prefix: str | None, verify: bool
) -> tuple[nn.Module, dict]:
    """As `from_torch`, of a module."""
    torch = _torch()
    module, grus = _plain(module), (torch.nn.GRU, torch.nn.GRUCell)
    if prefix is not None:
        named = {name: of for name, of in module.named_modules() if isinstance(of, grus)}
        require_one_of(prefix, sorted(named), "prefix")
        module = named[prefix]
    with _evaluating(module):
        state = _state(module)
        if verify and not isinstance(module, grus):
            model, variables = _found(module, state, pooling)
        else:
            model, variables = from_arrays(state, pooling)
            if verify:
                _require_same(module, model, variables)
    return model.clone(**_dropout(module)), variables


def _require_same(module: Any, model: nn.Module, variables: Mapping) -> None:
    """Raises `InputError` unless an `nn.GRU` or `nn.GRUCell`, as it is called, computes the same."""
    try:
        require_agreement(model, variables, gru_runner(_wide(module)), ARGUMENT)
    except InputError:
        raise
    except Exception as error:  # whatever a hook or a subclass of the user's makes of it
        found = f"{type(error).__name__}: {error}"
        raise InputError(
            ARGUMENT, "an nn.GRU that runs as torch's", found, "verify=False takes the weights."
        ) from error


def _plain(module: Any) -> Any:
    """The module itself: not compiled, not spread over devices; `InputError` where none is left of it."""
    torch = _torch()
    module = getattr(module, "_orig_mod", module)
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    for of in module.modules():
        remedy = "Pass its state_dict()."
        require(not isinstance(of, torch.jit.ScriptModule), ARGUMENT, "a module", "a TorchScript program", remedy)
        name, quantised = f"{type(of).__module__}.{type(of).__name__}", "quantized" in type(of).__module__
        require(not quantised, ARGUMENT, "weights of floats", f"the quantised {name}", "Pass the module from before.")
    return module


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation, every part back in its own mode afterwards."""
    training = {of: of.training for of in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for of, mode in training.items():
            of.training = mode


def _state(module: Any) -> dict[str, NDArray]:
    """What a state dict would hold, with the weights that GRUs and Linears compute with in the place of theirs."""
    torch, found = _torch(), {}
    inside: tuple[str, ...] = ()
    for name, of in module.named_modules(remove_duplicate=False):
        start = f"{name}." if name else ""
        if inside and name.startswith(inside):  # what computes a weight
            continue
        linear = isinstance(of, torch.nn.Linear)
        if not linear and not isinstance(of, (torch.nn.GRU, torch.nn.GRUCell)):
            own = dict((*of.named_parameters(recurse=False), *of.named_buffers(recurse=False)))
            known = bool(next(of.children(), None)) or not own
            expected = "nn.GRU, nn.GRUCell, or a module of one nn.GRU and one nn.Linear"
            require(known, name or ARGUMENT, expected, f"nn.{type(of).__name__}", FIND)
            found |= {f"{start}{key}": a for key, a in own.items()}
            continue
        inside += (start,)
        lazy = getattr(of, "has_uninitialized_params", bool)()
        require(not lazy, name or ARGUMENT, "weights", f"nn.{type(of).__name__} without any", "Run the module once.")
        if of._forward_pre_hooks:  # weight_norm and its like compute the weights as the module is called
            with torch.no_grad():
                of(next(of.parameters()).new_zeros(1, of.in_features if linear else of.input_size))
        names = getattr(of, "_flat_weights_names", ("weight", "bias") if linear else KINDS)
        found |= {f"{start}{key}": a for key in names if (a := getattr(of, key, None)) is not None}
    return {key: a.copy() for key, a in arrays(found).items()}


def _wide(module: Any) -> Any:
    """In float32 at least, as grujax carries its state: in 16 bits torch rounds the state at every step."""
    wide = next(module.parameters()).dtype in (_torch().float32, _torch().float64)
    return module if wide else copy.deepcopy(module).float()


def _dropout(module: Any) -> dict[str, Any]:
    """The one rate of a module; of several, of which a model has none, the largest, announced."""
    torch = _torch()
    rates = {of.p for of in module.modules() if isinstance(of, torch.nn.Dropout)}
    rates |= {of.dropout for of in module.modules() if isinstance(of, torch.nn.GRU) and of.num_layers > 1}
    if len(rates := rates - {0}) > 1:
        log.warning("dropout: the rates %s stand at places of their own; the largest is taken", sorted(rates))
    return {"dropout": max(rates)} if rates else {}


def _found(module: Any, state: Mapping[str, NDArray], pooling: Pooling | EllipsisType) -> tuple[nn.Module, dict]:
    """The model that agrees with the module, and its variables."""
    torch, parts = _torch(), read_state(state, stacked=True)
    if pooling is not ...:
        assumed_pooling(pooling, parts.head is not None)
    model, variables = put_together(parts.cells, parts.head, bidirectional=parts.bidirectional)
    module = _wide(module)
    parameter = next(module.parameters())

    def seen(size: tuple[int, int], time_major: bool) -> Seen:
        given = data(model, variables, size, grows=True)
        x = torch.tensor((given[0].swapaxes(0, 1) if time_major else given[0]).astype(np.float64))
        try:
            with torch.no_grad():
                found = _tensors(module(x.to(parameter.dtype).to(parameter.device)))
                return Seen(given, [t.double().cpu().numpy() for t in found])
        except Exception as error:  # whatever a module of the user's raises
            found, remedy = f"{type(error).__name__}: {error}", f"{FIND} verify=False takes the weights."
            return Seen(given, InputError(ARGUMENT, "a module that runs on x (B, T, I) alone", found, remedy))

    def serves(time_major: int, found: Any, places: Places) -> bool:
        """A head on every step gives its outputs with the axes of x."""
        turned = any(k != time_major for name, k in places if name != "h_last")
        return (pooling is ... or pooling == found) and not (found is None and turned)

    sizes = proof_sizes(model, variables)
    layouts = [[seen(size, time_major) for size in sizes] for time_major in (False, True)]
    time_major, model = read_by_running(ARGUMENT, model, variables, layouts, serves)
    return model.clone(time_major=True) if time_major else model, variables


def _tensors(found: Any) -> Iterator[Any]:
    """All tensors of what a module returns."""
    if isinstance(found, _torch().Tensor):
        yield found
    elif isinstance(found, (Mapping, list, tuple)):
        for one in found.values() if isinstance(found, Mapping) else found:
            yield from _tensors(one)
