"""Which implementation runs the recurrence, and why. The only file that knows the implementations and the platforms."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grujax.errors import InputError, require
from grujax.kernels.derivative import Forward, entering, with_derivative
from grujax.kernels.scan import scan
from grujax.step import GateValues, check_spec, gate_values, split, split_gates
from grujax.types import Array, Control, Gates, GRUSpec, Recurrent, State, States, Valid, state_dtype


class Kernel(NamedTuple):
    """An implementation: what runs, what it is, and why it cannot serve a call (None where it can)."""

    run: Forward
    about: str
    refuses: Callable[[GRUSpec], str | None] = lambda spec: None


KERNELS: dict[str, Kernel] = {
    "fused": Kernel(
        with_derivative(scan),
        "lax.scan, each gate's product fused with its elementwise work, under the linear derivative rule",
        lambda spec: "the linear derivative rule has no layer normalisation" if spec.layer_norm else None,
    ),
    "scan": Kernel(scan, "lax.scan, differentiated by JAX"),
}
"""In the order in which None tries them, on every platform: no platform has a kernel of its own yet."""


class Explanation(NamedTuple):
    """What would run and why; `str()` of it reads as a sentence."""

    implementation: str
    reason: str

    def __str__(self) -> str:
        return f"{self.implementation}: {KERNELS[self.implementation].about} ({self.reason})"


def explain(*, spec: GRUSpec = GRUSpec(), implementation: str | None = None) -> Explanation:
    """Which implementation `gru_sequence` takes for a call with these arguments, and why.

    >>> explain().implementation
    'fused'
    >>> explain(implementation="scan").reason
    'named by the caller'
    >>> print(explain(spec=GRUSpec(layer_norm=True)))
    scan: lax.scan, differentiated by JAX (fused cannot serve: the linear derivative rule has no layer normalisation)

    Raises `InputError` where the spec names what is not there, or the named implementation does not exist or cannot
    serve the call.
    """
    check_spec(spec)
    if implementation is None:
        refusals = {name: kernel.refuses(spec) for name, kernel in KERNELS.items()}
        chosen = next(name for name, why in refusals.items() if why is None)
        passed = [f"{name} cannot serve: {why}" for name, why in refusals.items() if why is not None]
        default = "the default: fastest measured on CPU; nothing faster is known on other platforms"
        return Explanation(chosen, "; ".join(passed) or default)
    require(
        implementation in KERNELS,
        "implementation",
        f"one of {sorted(KERNELS)} or None",
        repr(implementation),
        '"reference" is nn.scan over GRUCell: only the layers (GRU, GRUEncoder, GRUModel) have it.'
        if implementation == "reference"
        else "",
    )
    if (why := KERNELS[implementation].refuses(spec)) is not None:
        raise InputError("implementation", "one that can serve the call", f"{implementation!r}: {why}", "Pass None.")
    return Explanation(implementation, "named by the caller")


def gru_sequence(
    gates_x: Gates,
    h0: State,
    w_hh: Array,
    b_hn: Array,
    *,
    scale_hh: Array | None = None,
    valid: Valid | None = None,
    reset: Valid | None = None,
    h_reset: Array | None = None,
    state_mask: Array | None = None,
    hold: Array | None = None,
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
) -> tuple[States, State]:
    """The recurrence alone: the narrow door through which every implementation is reached.

    Args:
      gates_x: (T, B, 3H), the projected input r | z | n with `b_ih` and the r, z parts of `b_hh` added.
      h0: (B, H), the state before the first step.
      w_hh: (H, 3H). Products with it run in its dtype and are summed in float32 at least.
      b_hn: (H,), the bias inside the candidate's recurrent product.
      scale_hh: (3H,), of layer normalisation, where `spec.layer_norm` and only there.
      valid: (T, B) bool; where False the state is held. None: every step is valid.
      reset: (T, B) bool; where True the state that enters the step is `h_reset`. A step that is not valid never resets.
      h_reset: (H,), zeros where None.
      state_mask: (B, H), multiplies the state where the products read it. No derivative.
      hold: (T, B, H), 0 to 1, the share of each unit that stays as it was. No derivative.
      spec: what is fixed at compile time, see `GRUSpec`.
      implementation: "fused", "scan", or None, which chooses; see `explain`.

    Returns:
      hs (T, B, H), the state after every step, and h_last (B, H), both in float32 at least.

    Raises:
      InputError: a shape or dtype that does not fit, or an implementation that cannot serve the call.

    >>> import jax.numpy as jnp
    >>> hs, h_last = gru_sequence(jnp.ones((5, 2, 9)), jnp.zeros((2, 3)), jnp.ones((3, 9)), jnp.ones(3))
    >>> hs.shape, bool((hs[-1] == h_last).all())
    ((5, 2, 3), True)
    """
    chosen = explain(spec=spec, implementation=implementation).implementation
    recurrent, control = Recurrent(w_hh, b_hn, scale_hh), Control(valid, reset, h_reset, state_mask, hold)
    _check(gates_x, h0, recurrent, control, spec)
    return _run(gates_x, h0, recurrent, control, spec, chosen)


def sequence_gates(
    gates_x: Gates, h0: State, hs: States, recurrent: Recurrent, control: Control, spec: GRUSpec
) -> GateValues:
    """r, z and n of every step, (T, B, H) each, of a recurrence that gave the states hs."""
    h0 = h0.astype(hs.dtype)
    if control.h_reset is not None:
        control = control._replace(h_reset=control.h_reset.astype(hs.dtype))
    mask = None if control.state_mask is None else control.state_mask[None] + jnp.zeros_like(hs)
    return gate_values(split_gates(gates_x), entering(h0, hs, control), split(recurrent), spec, mask)


@partial(jax.jit, static_argnums=(4, 5))
def _run(gates_x, h0, recurrent, control, spec, implementation):
    dtype = state_dtype(recurrent.w_hh.dtype)

    def cast(a: Any) -> Any:
        return None if a is None else a.astype(dtype)

    gates_x = gates_x.astype(dtype)
    # A carry must vary over the mesh axes that the inputs vary over: shard_map and explicit sharding ask for it.
    h0 = h0.astype(dtype) + jnp.zeros_like(split_gates(gates_x)[0].sum(0))
    reset = control.reset
    if reset is not None and control.valid is not None:
        reset = reset & control.valid
    state_mask, hold = (
        None if a is None else jax.lax.stop_gradient(cast(a)) for a in (control.state_mask, control.hold)
    )
    recurrent = Recurrent(recurrent.w_hh, cast(recurrent.b_hn), cast(recurrent.scale_hh))
    control = Control(control.valid, reset, cast(control.h_reset), state_mask, hold)
    return KERNELS[implementation].run(gates_x, h0, recurrent, control, spec)


def _check(gates_x, h0, recurrent, control, spec) -> None:
    require(gates_x.ndim == 3, "gates_x", "(T, B, 3H)", gates_x.shape)
    n_steps, n_rows, _ = gates_x.shape
    hidden_size = recurrent.w_hh.shape[0]
    expected = {
        "w_hh": (hidden_size, 3 * hidden_size),
        "gates_x": (n_steps, n_rows, 3 * hidden_size),
        "h0": (n_rows, hidden_size),
        "b_hn": (hidden_size,),
        "scale_hh": (3 * hidden_size,),
        "valid": (n_steps, n_rows),
        "reset": (n_steps, n_rows),
        "h_reset": (hidden_size,),
        "state_mask": (n_rows, hidden_size),
        "hold": (n_steps, n_rows, hidden_size),
    }
    arrays = {"gates_x": gates_x, "h0": h0} | recurrent._asdict() | control._asdict()
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
