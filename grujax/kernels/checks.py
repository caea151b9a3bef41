"""The arguments of `grujax.kernels.run`: refused where they do not fit."""

from numbers import Real

import jax.numpy as jnp

from grujax.errors import require
from grujax.kernels.step import ACTIVATIONS, UPDATES
from grujax.types import Activation, GRUSpec, Recurrence


def check(recurrence: Recurrence, spec: GRUSpec, time_major: bool = True) -> None:
    """Raises `InputError` for a shape or dtype that does not fit."""
    x, weights, h0, control = recurrence
    require(x.ndim == 3, "x", "(T, B, I)" if time_major else "(B, T, I)", x.shape)
    n_steps, n_rows = x.shape[:2] if time_major else (x.shape[1], x.shape[0])
    hidden_size, n_features = weights.w_hh.shape[0], x.shape[2]
    expected = {
        "w_hh": (hidden_size, 3 * hidden_size),
        "w_ih": (n_features, 3 * hidden_size),
        **dict.fromkeys(("b_ih", "b_hh", "scale_ih", "scale_hh"), (3 * hidden_size,)),
        "h0": (n_rows, hidden_size),
        "valid": (n_steps, n_rows),
        "reset": (n_steps, n_rows),
        "h_reset": (hidden_size,),
        "state_mask": (n_rows, hidden_size),
        "hold": (n_steps, n_rows, hidden_size),
    }
    arrays = weights._asdict() | {"h0": h0} | control._asdict()
    require(jnp.issubdtype(x.dtype, jnp.floating), "x", "a floating dtype", x.dtype)
    for name, shape in expected.items():
        if (array := arrays[name]) is None:
            continue
        require(array.shape == shape, name, f"shape {shape}", array.shape, "The order of axes is (T, B, features).")
        if name in ("valid", "reset"):
            require(array.dtype == jnp.bool_, name, "dtype bool", array.dtype)
        else:
            require(jnp.issubdtype(array.dtype, jnp.floating), name, "a floating dtype", array.dtype)
    for name in ("scale_ih", "scale_hh"):
        given = "None" if arrays[name] is None else "an array"
        wanted = "an array" if spec.layer_norm else "None"
        require(given == wanted, name, f"{wanted} with layer_norm={spec.layer_norm}", given)


def check_spec(spec: GRUSpec) -> None:
    """Raises `InputError` for a spec that names what is not there."""
    require(spec.update in UPDATES, "update", f"one of {list(UPDATES)}", repr(spec.update))
    check_activation(spec.activation, "activation")
    check_activation(spec.gate_activation, "gate_activation")
    if spec.clip is not None:
        positive = isinstance(spec.clip, Real) and spec.clip > 0
        require(positive, "clip", "a positive number or None", repr(spec.clip))


def check_activation(activation: Activation, argument: str) -> None:
    known = callable(activation) or activation in ACTIVATIONS
    require(known, argument, f"one of {sorted(ACTIVATIONS)} or an elementwise function", repr(activation))
