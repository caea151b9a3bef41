"""Which implementation runs the recurrence, and why. The only file that knows the implementations and the platforms."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from grujax.errors import InputError, require
from grujax.kernels.derivative import Forward, with_derivative
from grujax.kernels.scan import scan
from grujax.step import split_gates
from grujax.types import Array, Gates, GRUSpec, State, States, Valid, state_dtype


class Kernel(NamedTuple):
    """An implementation: what runs, what it is, and why it cannot serve a call (None where it can)."""

    run: Forward
    about: str
    refuses: Callable[[GRUSpec], str | None] = lambda spec: None


KERNELS: dict[str, Kernel] = {
    "fused": Kernel(
        with_derivative(scan),
        "lax.scan, each gate's product fused with its elementwise work, under the linear derivative rule",
    ),
    "scan": Kernel(scan, "lax.scan, differentiated by JAX"),
}
DEFAULT = "fused"
"""What None chooses, on every platform: no platform has a kernel of its own yet."""


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

    Raises `InputError` where the named implementation does not exist or cannot serve the call.
    """
    if implementation is None:
        return Explanation(DEFAULT, "the default: fastest measured on CPU; nothing faster is known on other platforms")
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
    valid: Valid | None = None,
    reset: Valid | None = None,
    h_reset: Array | None = None,
    spec: GRUSpec = GRUSpec(),
    implementation: str | None = None,
) -> tuple[States, State]:
    """The recurrence alone: the narrow door through which every implementation is reached.

    Args:
      gates_x: (T, B, 3H), the projected input r | z | n with `b_ih` and the r, z parts of `b_hh` added.
      h0: (B, H), the state before the first step.
      w_hh: (H, 3H). Products with it run in its dtype and are summed in float32 at least.
      b_hn: (H,), the bias inside the candidate's recurrent product.
      valid: (T, B) bool; where False the state is held. None: every step is valid.
      reset: (T, B) bool; where True the state that enters the step is `h_reset`. A step that is not valid never resets.
      h_reset: (H,), zeros where None.
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
    _check(gates_x, h0, w_hh, b_hn, valid, reset, h_reset)
    return _run(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, spec, chosen)


@partial(jax.jit, static_argnums=(7, 8))
def _run(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, spec, implementation):
    dtype = state_dtype(w_hh.dtype)
    gates_x, h0, b_hn = (a.astype(dtype) for a in (gates_x, h0, b_hn))
    # A carry must vary over the mesh axes that the inputs vary over: shard_map and explicit sharding ask for it.
    h0 = h0 + jnp.zeros_like(split_gates(gates_x)[0].sum(0))
    if reset is not None and valid is not None:
        reset = reset & valid
    if h_reset is not None:
        h_reset = h_reset.astype(dtype)
    return KERNELS[implementation].run(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, spec)


def _check(gates_x, h0, w_hh, b_hn, valid, reset, h_reset) -> None:
    require(gates_x.ndim == 3, "gates_x", "(T, B, 3H)", gates_x.shape)
    n_steps, n_rows, _ = gates_x.shape
    hidden_size = w_hh.shape[0]
    expected = {
        "w_hh": (w_hh, (hidden_size, 3 * hidden_size)),
        "gates_x": (gates_x, (n_steps, n_rows, 3 * hidden_size)),
        "h0": (h0, (n_rows, hidden_size)),
        "b_hn": (b_hn, (hidden_size,)),
        "valid": (valid, (n_steps, n_rows)),
        "reset": (reset, (n_steps, n_rows)),
        "h_reset": (h_reset, (hidden_size,)),
    }
    for name, (array, shape) in expected.items():
        if array is None:
            continue
        require(array.shape == shape, name, f"shape {shape}", array.shape, "The order of axes is (T, B, features).")
        if name in ("valid", "reset"):
            require(array.dtype == jnp.bool_, name, "dtype bool", array.dtype)
        else:
            require(jnp.issubdtype(array.dtype, jnp.floating), name, "a floating dtype", array.dtype)
