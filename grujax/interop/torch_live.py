"""A live module of torch: its effective weights, and what it computes, found by running it."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import Pooling
from grujax.errors import InputError, require
from grujax.interop.hypotheses import Chosen, choose, clearest, readings
from grujax.interop.parts import put_together
from grujax.interop.prove import FIND, TWO_SIZES, Runner, data, log, outputs, require_agreement
from grujax.interop.torch import _torch, arrays, gru_runner
from grujax.interop.torch_keys import KINDS, Names, cells_of, dense, from_arrays, head_of, read_names
from grujax.linen.layer import GRU
from grujax.linen.model import GRUModel

ARGUMENT = "module_or_state_dict"


def from_module(
    module: Any, pooling: Pooling | EllipsisType, prefix: str | None, verify: bool
) -> tuple[nn.Module, dict]:
    """As `from_torch`, of a module."""
    torch = _torch()
    module = _plain(module)
    if prefix:
        grus = {name: of for name, of in module.named_modules() if isinstance(of, (torch.nn.GRU, torch.nn.GRUCell))}
        require(prefix in grus, "prefix", f"one of {sorted(grus)}", repr(prefix))
        module = grus[prefix]
    with _evaluating(module):
        state = _state(module)
        if isinstance(module, (torch.nn.GRU, torch.nn.GRUCell)):
            model, variables = from_arrays(state)
            model = model.clone(**_dropout(module))
            run = gru_runner(_wide(module))
        else:
            if not verify:
                model, variables = from_arrays(state, pooling)
                return model.clone(**_dropout(module)), variables
            model, variables, run = _found(module, state, pooling)
            model = model.clone(**_dropout(module))
        if verify:
            require_agreement(model, variables, run, ARGUMENT)
    return model, variables


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
    torch = _torch()
    served = (torch.nn.GRU, torch.nn.GRUCell, torch.nn.Linear)
    found: dict[str, Any] = {}
    inside: tuple[str, ...] = ()
    for name, of in module.named_modules(remove_duplicate=False):
        start = f"{name}." if name else ""
        if name.startswith(inside) and inside:  # what computes a weight
            continue
        if not isinstance(of, served):
            own = dict((*of.named_parameters(recurse=False), *of.named_buffers(recurse=False)))
            known = bool(next(of.children(), None)) or not own
            expected = "nn.GRU, nn.GRUCell, or a module of one nn.GRU and one nn.Linear"
            require(known, name or ARGUMENT, expected, f"nn.{type(of).__name__}", FIND)
            found |= {f"{start}{key}": a for key, a in own.items()}
            continue
        inside += (start,)
        if of._forward_pre_hooks:  # weight_norm and its like compute the weights as the module is called
            with torch.no_grad():
                width = of.in_features if isinstance(of, torch.nn.Linear) else of.input_size
                of(next(of.parameters()).new_zeros(1, width))
        names = getattr(of, "_flat_weights_names", ("weight", "bias") if isinstance(of, torch.nn.Linear) else KINDS)
        weights = {f"{start}{key}": getattr(of, key, None) for key in names}
        found |= {key: a for key, a in weights.items() if a is not None}
    return {key: a.copy() for key, a in arrays(found).items()}


def _wide(module: Any) -> Any:
    """In float32 at least, as grujax carries its state: in 16 bits torch rounds the state at every step."""
    torch = _torch()
    if next(module.parameters()).dtype in (torch.float32, torch.float64):
        return module
    return copy.deepcopy(module).float()


def _dropout(module: Any) -> dict[str, Any]:
    """The one rate of a module; `InputError` where it has several, of which a model has none."""
    torch = _torch()
    rates = {of.p for of in module.modules() if isinstance(of, torch.nn.Dropout) and of.p}
    grus = [of for of in module.modules() if isinstance(of, torch.nn.GRU)]
    rates |= {of.dropout for of in grus if of.num_layers > 1 and of.dropout}
    if len(rates) > 1:
        log.warning("dropout: the rates %s stand at places of their own; the largest is taken", sorted(rates))
    return {"dropout": max(rates)} if rates else {}


def _found(
    module: Any, state: Mapping[str, NDArray], pooling: Pooling | EllipsisType
) -> tuple[nn.Module, dict, Runner]:
    """The model whose hypothesis agrees with the module, and the module as its `Runner`."""
    torch = _torch()
    names = _stacked(state) or read_names(state)
    cells = cells_of(state, names)
    known = {key for keys in names.keys for key in keys}
    known |= {f"{names.head}weight", f"{names.head}bias"} if names.head is not None else set()
    for key in state:
        require(key in known, key, f"only the keys {sorted(known)}", "this key besides", f"It would be lost. {FIND}")
    head = None if names.head is None else (f"{names.head}weight", dense(state, names))
    model, variables = put_together(cells, head, bidirectional=names.bidirectional)
    gru, weights = model, variables
    if isinstance(model, GRUModel):
        gru, weights = GRU(**model.fields_of(GRU)), {"params": variables["params"]["encoder"]["gru"]}
    if jnp.finfo(gru.param_dtype).bits == 16:  # as `_wide` runs the module
        gru, weights = gru.clone(param_dtype=jnp.float32), jax.tree.map(lambda a: a.astype(jnp.float32), weights)
    module, given = _wide(module), data(gru, weights, Runner(lambda *_: {}, takes_h0=False), 0)[0]
    parameter = next(module.parameters())

    def run(x: NDArray) -> list[NDArray]:
        with torch.no_grad():
            a = torch.tensor(x.astype(np.float64)).to(parameter.dtype).to(parameter.device)
            return [t.double().cpu().numpy() for t in _tensors(module(a))]

    ours, refusals = outputs(gru, weights, given, None, None), []
    for time_major in (False, True):
        try:
            theirs = run(given.swapaxes(0, 1) if time_major else given)
            candidates = readings(gru, ours, *(head[1] if head else (None, None)))
            candidates = [r for r in candidates if pooling is ... or r.fields.get("pooling") == pooling]
            chosen = choose(ARGUMENT, theirs, candidates)
            turned = [k != time_major for name, k in chosen.names if name != "h_last"]
            of_steps = chosen.reading.fields.get("pooling") is None
            axes = "output with the axes of x"
            require(not of_steps or not any(turned), ARGUMENT, axes, "time and batch exchanged", FIND)
        except InputError as error:
            refusals.append(error)
            continue
        except Exception as error:  # whatever a module of the user's raises
            found = f"{type(error).__name__}: {error}"
            expected = "a module that runs on x (B, T, I) alone"
            refusals.append(InputError(ARGUMENT, expected, found, f"{FIND} verify=False takes the weights."))
            continue
        fields: dict[str, Any] = chosen.reading.fields | ({"time_major": True} if time_major else {})
        log.info("read as: %s", chosen.reading.words)

        def call(x: NDArray, h0: Any, lengths: Any, chosen: Chosen = chosen, time_major: bool = time_major) -> Any:
            return chosen.outputs(run(x.swapaxes(0, 1) if time_major else x), x.shape[:2])

        return model.clone(**fields), variables, Runner(call, False, False, TWO_SIZES)
    raise clearest(refusals)


def _stacked(state: Mapping[str, NDArray]) -> Names | None:
    """The names of several `nn.GRUCell`s, or of one inside a module, taken for layers one over the other."""
    starts = [key.removesuffix("weight_hh") for key in state if key.endswith("weight_hh")]
    if not starts:
        return None
    others = [key for key in state if not key.rsplit(".", 1)[-1].startswith(("weight_", "bias_"))]
    head, bias = head_of(others), f"{starts[0]}bias_hh" in state
    return Names("", head, [""] * len(starts), bias, f"{head}bias" in others, tuple(starts))


def _tensors(found: Any) -> Iterator[Any]:
    """All tensors of what a module returns."""
    if isinstance(found, _torch().Tensor):
        yield found
    elif isinstance(found, Mapping):
        for one in found.values():
            yield from _tensors(one)
    elif isinstance(found, (list, tuple)):
        for one in found:
            yield from _tensors(one)
