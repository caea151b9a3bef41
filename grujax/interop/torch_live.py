"""Reads a live torch module: its effective weights, and what it computes, by running it."""

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
    """`from_torch` for a module."""
    torch = _torch()
    module, grus = _plain(module), (torch.nn.GRU, torch.nn.GRUCell)
    if prefix is not None:
        named = {name: part for name, part in module.named_modules() if isinstance(part, grus)}
        require_one_of(prefix, sorted(named), "prefix")
        module = named[prefix]
    with _evaluating(module):
        state = _state(module)
        if verify and not isinstance(module, grus):
            model, variables = _identified(module, state, pooling)
        else:
            model, variables = from_arrays(state, pooling)
            if verify:
                _require_same(module, model, variables)
    return model.clone(**_dropout(module)), variables


def _require_same(module: Any, model: nn.Module, variables: Mapping) -> None:
    """Raises `InputError` unless an `nn.GRU` or `nn.GRUCell`, when it is called, computes the same as the model."""
    try:
        require_agreement(model, variables, gru_runner(_wide(module)), ARGUMENT)
    except InputError:
        raise
    except Exception as error:  # a hook or a subclass of the user may raise anything
        found, remedy = f"{type(error).__name__}: {error}", "verify=False reads only the weights."
        raise InputError(ARGUMENT, "an nn.GRU that runs as torch's", found, remedy) from error


def _plain(module: Any) -> Any:
    """The module without the wrappers of torch.compile and of data parallelism; raises `InputError` for a TorchScript
    program or a quantised module."""
    torch = _torch()
    module = getattr(module, "_orig_mod", module)
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    for part in module.modules():
        remedy = "Pass its state_dict()."
        require(not isinstance(part, torch.jit.ScriptModule), ARGUMENT, "a module", "a TorchScript program", remedy)
        name, quantised = f"{type(part).__module__}.{type(part).__name__}", "quantized" in type(part).__module__
        remedy = "Pass the module from before its quantisation."
        require(not quantised, ARGUMENT, "floating-point weights", f"the quantised {name}", remedy)
    return module


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Puts the module into evaluation mode; afterwards each part gets its old mode back."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def _state(module: Any) -> dict[str, NDArray]:
    """The state dict of a module, in which the weights of GRUs and Linears are the effective ones."""
    torch, state = _torch(), {}
    inside: tuple[str, ...] = ()
    for name, part in module.named_modules(remove_duplicate=False):
        start = f"{name}." if name else ""
        if inside and name.startswith(inside):  # a parametrisation, which computes a weight
            continue
        linear = isinstance(part, torch.nn.Linear)
        if not linear and not isinstance(part, (torch.nn.GRU, torch.nn.GRUCell)):
            direct = dict((*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)))
            known = bool(next(part.children(), None)) or not direct
            expected = "nn.GRU, nn.GRUCell, or a module of one nn.GRU and one nn.Linear"
            require(known, name or ARGUMENT, expected, f"nn.{type(part).__name__}", FIND)
            state |= {f"{start}{key}": a for key, a in direct.items()}
            continue
        inside += (start,)
        lazy = getattr(part, "has_uninitialized_params", bool)()
        require(not lazy, name or ARGUMENT, "weights", f"nn.{type(part).__name__} without any", "Run the module once.")
        if part._forward_pre_hooks:  # hooks such as weight_norm's compute the weights when the module is called
            with torch.no_grad():
                part(next(part.parameters()).new_zeros(1, part.in_features if linear else part.input_size))
        names = getattr(part, "_flat_weights_names", ("weight", "bias") if linear else KINDS)
        state |= {f"{start}{key}": a for key in names if (a := getattr(part, key, None)) is not None}
    return {key: a.copy() for key, a in arrays(state).items()}


def _wide(module: Any) -> Any:
    """The module in 32 bits at least, like grujax's state; in 16 bits torch would round the state at every step."""
    wide = next(module.parameters()).dtype in (_torch().float32, _torch().float64)
    return module if wide else copy.deepcopy(module).float()


def _dropout(module: Any) -> dict[str, Any]:
    """The `dropout` of the model: the module's rate, or the largest of several with a logged warning."""
    torch = _torch()
    rates = {part.p for part in module.modules() if isinstance(part, torch.nn.Dropout)}
    rates |= {part.dropout for part in module.modules() if isinstance(part, torch.nn.GRU) and part.num_layers > 1}
    if len(rates := rates - {0}) > 1:
        log.warning("dropout: a model has one rate, the module has %s; the largest is used", sorted(rates))
    return {"dropout": max(rates)} if rates else {}


def _identified(module: Any, state: Mapping[str, NDArray], pooling: Pooling | EllipsisType) -> tuple[nn.Module, dict]:
    """The model that computes the same as the module, and its variables."""
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
                results = _tensors(module(x.to(parameter.dtype).to(parameter.device)))
                return Seen(given, [t.double().cpu().numpy() for t in results])
        except Exception as error:  # a module of the user may raise anything
            found, remedy = f"{type(error).__name__}: {error}", f"{FIND} verify=False reads only the weights."
            return Seen(given, InputError(ARGUMENT, "a module that runs on x (B, T, I) alone", found, remedy))

    def serves(time_major: int, candidate: Any, places: Places) -> bool:
        """Whether the pooling is the requested one and the output of every step has the layout of x."""
        turned = any(k != time_major for name, k in places if name != "h_last")
        return (pooling is ... or pooling == candidate) and not (candidate is None and turned)

    sizes = proof_sizes(model, variables)
    layouts = [[seen(size, time_major) for size in sizes] for time_major in (False, True)]
    time_major, model = read_by_running(ARGUMENT, model, variables, layouts, serves)
    return model.clone(time_major=True) if time_major else model, variables


def _tensors(result: Any) -> Iterator[Any]:
    """All tensors that a module returned, however nested."""
    if isinstance(result, _torch().Tensor):
        yield result
    elif isinstance(result, (Mapping, list, tuple)):
        for item in result.values() if isinstance(result, Mapping) else result:
            yield from _tensors(item)
