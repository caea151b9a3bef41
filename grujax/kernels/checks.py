"""The arguments of `gru_sequence`: refused where they do not fit, and made ready for the loops."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from grujax.arrays import as_array, require_floating
from grujax.errors import require, require_equal
from grujax.types import Control, GRUSpec, Projection, Recurrence, Recurrent, State, state_dtype


def check(projection: Projection, h0: State, recurrent: Recurrent, control: Control, spec: GRUSpec) -> None:
    """Raises `InputError` for a shape or dtype that does not fit."""
    first = "gates_x" if projection.w_ih is None else "gates_x.x"
    arrays = {first: projection.x, "h0": h0} | projection._asdict() | recurrent._asdict() | control._asdict()
    for name, array in arrays.items():
        if array is not None or name in (first, "h0", "w_hh", "b_hn"):
            require(as_array(array, name) is array, name, "an array", f"a {type(array).__name__}")
    for name, axes in (
        (first, "(T, B, 3H)" if projection.w_ih is None else "(T, B, I)"),
        ("w_hh", "(H, 3H)"),
        ("w_ih", "(I, 3H)"),
    ):
        if (array := arrays[name]) is not None:
            fits = array.ndim == axes.count(",") + 1 and array.shape[-1] != 0
            require(fits, name, f"{axes}, none of them 0" if name != first else axes, f"shape {array.shape}")
    hidden_size = recurrent.w_hh.shape[0]
    features = 3 * hidden_size if projection.w_ih is None else projection.w_ih.shape[0]
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
    for name, shape in expected.items():
        if (array := arrays[name]) is None:
            continue
        require_equal(array.shape, shape, name, "The order of axes is (T, B, features).")
        if name in ("valid", "reset"):
            require_equal(array.dtype, jnp.dtype(bool), name)
        else:
            require_floating(array, name)
    wanted, given = ("an array" if there else None for there in (spec.layer_norm, recurrent.scale_hh is not None))
    rule = "layer_norm=True needs scale_hh" if spec.layer_norm else "scale_hh needs layer_norm=True"
    require(given == wanted, "scale_hh", wanted, given, rule=rule)


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
