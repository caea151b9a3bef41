"""Exports a model with its weights as a StableHLO program for any B and T, on cpu, cuda and tpu. None is read back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export
from numpy.typing import NDArray

from grujax.errors import InputError, require_package
from grujax.interop.framework import Framework
from grujax.interop.prove import Runner, outputs, sizes
from grujax.linen import GRU, GRUCell, require_own
from grujax.types import state_dtype

PLATFORMS = ("cpu", "cuda", "tpu")
LOADER = """import jax
program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
y, h_last = program.call(x, h0, lengths)  # (B, T, I), (L*D, B, H), int32 (B,)"""
"""Code that runs a program; it needs jax and flatbuffers, and not grujax."""


def to_stablehlo(model: nn.Module, variables: Mapping, *, lengths: bool = True, state: bool = True) -> bytes:
    """Returns the serialised `jax.export.Exported` of `model.apply` in inference, with symbolic batch B and time T.

    To run it, `jax.export.deserialize(data).call(x, h0, lengths)` needs jax and not grujax. The program contains
    everything that a `GRU`, `GRUCell` or `GRUModel` computes, with its statistics; the variables are constants in it.

    Args:
      lengths: False leaves the argument out, and all steps are valid. A cell has none.
      state: False leaves out the argument h0 and the output h_last; the state starts as the model defines it. A cell
        always returns its next state.

    Returns:
      bytes of a program that is batch-major whatever the model's `time_major` is. It takes x (B, T, I) in the dtype of
      the parameters, h0 (L*D, B, H) in the dtype of the state and lengths (B,) int32. It returns the output,
      (B, T, D*H), or a model's `y`; with `state` a pair of this and h_last (L*D, B, H). The program of a cell takes
      x (B, I) and h (B, H), and returns the next h.

    >>> import grujax, numpy as np
    >>> model = grujax.GRUModel(hidden_size=4, output_size=2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 1, 3)))
    >>> program = export.deserialize(to_stablehlo(model, variables, state=False))
    >>> program.call(jnp.ones((5, 7, 3)), jnp.full(5, 7, jnp.int32)).shape
    (5, 2)
    """
    require_own(model)
    input_size, hidden_size, n_states = sizes(model, variables)
    dtype = jnp.dtype(model.param_dtype)
    wide = state_dtype(dtype)
    if isinstance(model, GRUCell):
        arguments = [(f"b, {input_size}", dtype), *[(f"b, {hidden_size}", wide)] * state]
    else:
        arguments = [(f"b, t, {input_size}", dtype)]
        arguments += [(f"{n_states}, b, {hidden_size}", wide)] * state + [("b", jnp.int32)] * lengths

    def run(x, *others):
        if isinstance(model, GRUCell):
            return outputs(model, variables, x, others[0] if state else None, None)["h_last"]
        result = outputs(model, variables, x, others[0] if state else None, others[-1] if lengths else None)
        return tuple(result.values()) if state else next(iter(result.values()))

    scope = export.SymbolicScope()
    symbolic = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), d) for shape, d in arguments]
    require_package("flatbuffers", "stablehlo")  # jax stores programs with it
    return bytes(export.export(jax.jit(run), platforms=PLATFORMS)(*symbolic).serialize())


def _read(program: bytes) -> tuple[nn.Module, dict]:
    """Refuses: a program cannot be read back into weights."""
    remedy = "jax.export.deserialize(data).call runs it; for everything else, keep the model file."
    raise InputError("path", "a file of weights", "a StableHLO program", remedy)


def _run(program: bytes, model: nn.Module) -> Runner:
    """Runs a program of `to_stablehlo` with jax.export."""
    exported = export.deserialize(bytearray(program))
    names = {GRUCell: ("h_last",), GRU: ("output", "h_last")}.get(type(model), ("y", "h_last"))

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, Any]:
        result = exported.call(*(jnp.asarray(a) for a in (x, h0, lengths) if a is not None))
        return dict(zip(names, result if isinstance(result, tuple) else (result,), strict=False))

    axes = [len(a.shape) for a in exported.in_avals]
    return Runner(call, takes_h0=len(axes) > 1 and axes[1] > 1, takes_lengths=axes[-1] == 1)


FRAMEWORK = Framework(
    "stablehlo",
    _read,
    to_stablehlo,
    _run,
    load=Path.read_bytes,
    write=Path.write_bytes,
    endings=(".stablehlo",),
    keeps_statistics=True,
)
