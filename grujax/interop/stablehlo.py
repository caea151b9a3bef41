"""A model as a program: StableHLO, its weights inside, of any batch and length, for cpu, cuda and tpu. One way only."""

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
"""What runs it, in a process that has jax and flatbuffers and not grujax."""


def to_stablehlo(model: nn.Module, variables: Mapping, *, lengths: bool = True, state: bool = True) -> bytes:
    """The serialised `jax.export.Exported` of `model.apply`, in inference, of symbolic batch B and time T.

    A process that has jax, and not grujax, runs it: `jax.export.deserialize(data).call(x, h0, lengths)`. Everything
    that a `GRU`, `GRUCell` or `GRUModel` computes is in it, statistics included; the variables are its constants.

    Args:
      lengths, state: False leaves the argument out; all steps are valid then, and the state begins as the model has it
        and does not come out. A cell has no lengths, and its next state comes out.

    Returns:
      bytes of a program that is batch-major whatever the model's `time_major`. It takes x (B, T, I) in the dtype of the
      parameters, h0 (L*D, B, H) in that of the state, lengths (B,) int32, and gives `output (B, T, D*H)` or, of a
      model, `y`; with `state` a pair, it and h_last (L*D, B, H). Of a cell: x (B, I) and h (B, H), giving the next h.

    >>> import grujax, numpy as np
    >>> model = grujax.GRUModel(hidden_size=4, output_size=2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 1, 3)))
    >>> program = export.deserialize(to_stablehlo(model, variables, state=False))
    >>> program.call(jnp.ones((5, 7, 3)), jnp.full(5, 7, jnp.int32)).shape
    (5, 2)
    """
    require_own(model)
    found, dtype = sizes(model, variables), jnp.dtype(model.param_dtype)
    wide = state_dtype(dtype)
    if isinstance(model, GRUCell):
        given = [(f"b, {found.input_size}", dtype), *[(f"b, {found.hidden_size}", wide)] * state]
    else:
        given = [(f"b, t, {found.input_size}", dtype)]
        given += [(f"{found.n_states}, b, {found.hidden_size}", wide)] * state + [("b", jnp.int32)] * lengths

    def run(x, *others):
        if isinstance(model, GRUCell):
            return outputs(model, variables, x, others[0] if state else None, None)["h_last"]
        result = outputs(model, variables, x, others[0] if state else None, others[-1] if lengths else None)
        return tuple(result.values()) if state else next(iter(result.values()))

    scope = export.SymbolicScope()
    symbolic = [jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), of) for shape, of in given]
    require_package("flatbuffers", "stablehlo")  # jax stores programs with it
    return bytes(export.export(jax.jit(run), platforms=PLATFORMS)(*symbolic).serialize())


def _read(program: bytes) -> tuple[nn.Module, dict]:
    """A program is not read back into weights."""
    remedy = "jax.export.deserialize(data).call runs it; keep the model file for everything else."
    raise InputError("path", "a file of weights", "a StableHLO program", remedy)


def _run(program: bytes, model: nn.Module) -> Runner:
    """jax.export alone, on what `to_stablehlo` made."""
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
