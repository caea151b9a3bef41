"""Checks the arguments of `grujax.kernels.run`."""

from numbers import Real

import jax.numpy as jnp

from grujax.arrays import as_array, require_floating
from grujax.errors import require, require_equal, require_one_of
from grujax.kernels.step import ACTIVATIONS, UPDATES
from grujax.types import Activation, GRUSpec, Recurrence


def check(recurrence: Recurrence, spec: GRUSpec, time_major: bool = True) -> None:
    """Raises `InputError` if a shape or dtype does not fit, or an array and `spec.layer_norm` contradict each other."""
    x, weights, h0, control = recurrence
    arrays = {"x": x, "h0": h0} | weights._asdict() | control._asdict()
    for name, array in arrays.items():
        if array is not None or name in ("x", "w_ih", "w_hh"):
            require(as_array(array, name) is array, name, "an array", f"a {type(array).__name__}")
    steps = "(T, B, I)" if time_major else "(B, T, I)"
    for name, axes in (("x", steps), ("w_hh", "(H, 3H)"), ("w_ih", "(I, 3H)")):
        fits = arrays[name].ndim == axes.count(",") + 1 and arrays[name].shape[-1] != 0
        require(fits, name, axes, f"shape {arrays[name].shape}")
    require_floating(x, "x")
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
    for name, shape in expected.items():
        if (array := arrays[name]) is None:
            continue
        require_equal(array.shape, shape, name, "The order of axes is (T, B, features).")
        if name in ("valid", "reset"):
            require_equal(array.dtype, jnp.dtype(bool), name)
        else:
            require_floating(array, name)
    for name in ("scale_ih", "scale_hh"):
        expected, found = ("an array" if exists else None for exists in (spec.layer_norm, arrays[name] is not None))
        rule = f"layer_norm=True needs {name}" if spec.layer_norm else f"{name} needs layer_norm=True"
        require(found == expected, name, expected, found, rule=rule)


def check_spec(spec: GRUSpec) -> None:
    """Raises `InputError` if the spec contains an unknown name or a clip that is not positive."""
    require_one_of(spec.update, UPDATES, "update")
    check_activation(spec.activation, "activation")
    check_activation(spec.gate_activation, "gate_activation")
    if spec.clip is not None:
        positive = isinstance(spec.clip, Real) and spec.clip > 0
        require(positive, "clip", "a positive number or None", repr(spec.clip))


def check_activation(activation: Activation, argument: str) -> None:
    """Raises `InputError` unless `activation` is a function or a known name."""
    if not callable(activation):
        require_one_of(activation, sorted(ACTIVATIONS), argument, "Or pass an elementwise function.")
