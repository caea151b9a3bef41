"""The arguments of `gru_sequence`: refused where they do not fit, and made ready for the loops."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from grujax.errors import require
from grujax.types import Control, GRUSpec, Projection, Recurrence, Recurrent, State, state_dtype


def check(projection: Projection, h0: State, recurrent: Recurrent, control: Control, spec: GRUSpec) -> None:
    """Raises `InputError` for a shape or dtype that does not fit."""
    hidden_size = recurrent.w_hh.shape[0]
    w_ih = projection.w_ih
    first, features = ("gates_x", 3 * hidden_size) if w_ih is None else ("gates_x.x", w_ih.shape[0])
    require(projection.x.ndim == 3, first, f"(T, B, {'3H' if w_ih is None else 'I'})", projection.x.shape)
    n_steps, n_rows, _ = projection.x.shape
    expected = {
        "w_hh": (hidden_size, 3 * hidden_size),
        first: (n_steps, n_rows, features),
        "w_ih": (features, 3 * hidden_size),
        "bias": (3 * hidden_size,),
        "scale_ih": (3 * hidden_size,),
        "h0": (n_rows, hidden_size),
        "b_hn": (hidden_size,),
        "scale_hh": (3 * hidden_size,),
        "valid": (n_steps, n_rows),
        "reset": (n_steps, n_rows),
        "h_reset": (hidden_size,),
        "state_mask": (n_rows, hidden_size),
        "hold": (n_steps, n_rows, hidden_size),
    }
    arrays = projection._asdict() | {first: projection.x, "h0": h0} | recurrent._asdict() | control._asdict()
    for name, shape in expected.items():
        if (array := arrays[name]) is None:
            continue
        require(array.shape == shape, name, f"shape {shape}", array.shape, "The order of axes is (T, B, features).")
        if name in ("valid", "reset"):
            require(array.dtype == jnp.bool_, name, "dtype bool", array.dtype)
        else:
            require(jnp.issubdtype(array.dtype, jnp.floating), name, "a floating dtype", array.dtype)
    given = "an array" if recurrent.scale_hh is not None else "None"
    wanted = "an array" if spec.layer_norm else "None"
    require(given == wanted, "scale_hh", f"{wanted} with layer_norm={spec.layer_norm}", given)


def prepared(projection: Projection, h0: State, recurrent: Recurrent, control: Control) -> Recurrence:
    """All in its final dtype; resets where steps are valid."""
    dtype = state_dtype(recurrent.w_hh.dtype)

    def cast(a: Any) -> Any:
        return None if a is None else a.astype(dtype)

    if projection.w_ih is None:
        projection = projection._replace(x=cast(projection.x))
    # A carry must vary over the mesh axes that the inputs vary over: shard_map and explicit sharding ask for it.
    h0 = h0.astype(dtype) + jnp.zeros_like(projection.x.sum((0, 2)), dtype)[:, None]
    reset = control.reset
    if reset is not None and control.valid is not None:
        reset = reset & control.valid
    state_mask, hold = (None if a is None else lax.stop_gradient(cast(a)) for a in (control.state_mask, control.hold))
    recurrent = Recurrent(recurrent.w_hh, cast(recurrent.b_hn), cast(recurrent.scale_hh))
    return Recurrence(projection, h0, recurrent, Control(control.valid, reset, cast(control.h_reset), state_mask, hold))
