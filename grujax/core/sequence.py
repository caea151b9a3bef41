"""One layer, one direction, without Flax."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from grujax.arrays import as_array, require_floating, require_floating_dtype
from grujax.core.inputs import (
    Steps,
    check_include_initial,
    check_inputs,
    check_state,
    from_rows,
    to_rows,
)
from grujax.errors import require, require_equal
from grujax.kernels import explain, gru_sequences
from grujax.kernels.step import GateValues, cast, projection, recurrent
from grujax.types import (
    Activation,
    Array,
    Control,
    GRUSpec,
    GRUWeights,
    Inputs,
    Ran,
    Recurrence,
    State,
    States,
    Valid,
    state_dtype,
)


def gru(
    x: Inputs,
    weights: GRUWeights,
    h0: Array | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    h_reset: Array | None = None,
    reverse: bool = False,
    time_major: bool = False,
    include_initial: bool = False,
    reset_after: bool = True,
    update: str = "keep",
    activation: Activation = "tanh",
    gate_activation: Activation = "sigmoid",
    clip: float | None = None,
    implementation: str | None = None,
    dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Array, Array]:
    """One GRU layer in one direction, the equations of `torch.nn.GRU`:

        r  = σ(W_ir x + b_ir + W_hr h + b_hr)
        z  = σ(W_iz x + b_iz + W_hz h + b_hz)
        n  = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 − z) ⊙ n + z ⊙ h

    Args:
      x: (..., T, I), any number of batch axes, none included.
      weights: `w_ih (I, 3H)`, `w_hh (H, 3H)`, `b_ih (3H,)`, `b_hh (3H,)`, columns r | z | n; biases may be None.
        With `scale_ih` and `scale_hh` (3H,) the products are layer-normalised, r and z together and n apart, before
        the biases (Ba et al. 2016, arXiv 1607.06450, appendix).
      h0: (..., H), zeros where None. It may have another dtype than x: h_last comes in the dtype of h0, so that a
        scan may carry it.
      lengths: integers (...), how many steps of each sequence are valid. What stands past them, NaN included,
        reaches no output and no gradient. Under jit, where values are unknown, a length past T means T.
      mask: bool (..., T) instead of `lengths`: which steps are valid, holes allowed. The state is held over the others.
      resets: bool (..., T). A sequence begins at step t: forward, the state that enters t is `h_reset`; in reverse,
        the state that enters the last valid step before t is. h0 enters only what no reset stands before.
      h_reset: (H,), zeros where None.
      reverse: read the valid part backwards; the output stays in time order.
      time_major: x (T, ..., I), mask and resets (T, ...), hs (T, ..., H).
      include_initial: h0 stands in front of hs, T + 1 steps in all; not in reverse, where it would stand behind.
      reset_after: False puts r before the product, n = tanh(W_in x + b_in + W_hn (r ⊙ h) + b_hn) (Cho et al. 2014).
      update: "take" lets z weigh the candidate, h' = (1 − z) ⊙ h + z ⊙ n (Cho et al. 2014, Haiku).
      activation, gate_activation: a name of `grujax.kernels.step.ACTIVATIONS` or an elementwise function, of n, of r
        and z.
      clip: clips what stands inside every activation to ±clip (ONNX).
      implementation: a loop by its name (docs/speed.md), or None, which chooses (`grujax.kernels.explain`).
      dtype: compute dtype of the products; the dtype that x and the weights promote to where None.
      precision: of the products; None follows `jax.default_matmul_precision`.

    Returns:
      hs (..., T, H), exactly 0 at steps that are not valid, and h_last (..., H), the state after the last valid
      step, h0 for length 0; with resets that of the last sequence, in reverse of the first. hs is float32 at least;
      so is h_last, unless h0 has a dtype of its own.

    Raises:
      InputError: an array, shape, dtype, length or combination that does not fit.

    >>> import jax, jax.numpy as jnp
    >>> w = GRUWeights(jnp.ones((4, 9)), jnp.ones((3, 9)), jnp.ones(9), jnp.ones(9))
    >>> hs, h_last = gru(jnp.ones((2, 5, 4)), w, lengths=jnp.array([5, 3]))
    >>> hs.shape, h_last.shape
    ((2, 5, 3), (2, 3))

    Source: torch.nn.GRU; Cho et al. 2014, arXiv 1406.1078.
    """
    weights = _checked_weights(weights)
    spec = GRUSpec(reset_after, precision, update, activation, gate_activation, clip, weights.scale_hh is not None)
    explain(spec=spec, implementation=implementation)
    steps = check_inputs(x, weights.w_ih.shape[0], lengths, mask, resets, time_major)
    hidden_size = weights.w_hh.shape[0]
    h0 = check_state(h0, "h0", (*steps.batch, hidden_size))
    h_reset = check_state(h_reset, "h_reset", (hidden_size,))
    alone = h_reset is not None and resets is None
    remedy = "The state that a sequence begins with is h0."
    require(not alone, "h_reset", "None", "an array", remedy, rule="h_reset needs resets")
    check_include_initial(include_initial, reverse)
    require_floating_dtype(dtype, "dtype")
    dtype = jnp.result_type(steps.x, weights.w_ih) if dtype is None else dtype
    options = (reverse, spec, implementation, jnp.dtype(dtype))
    return _gru(steps.x, weights, h0, steps.valid, steps.resets, h_reset, time_major, include_initial, options)


@partial(jax.jit, static_argnums=(6, 7, 8))
def _gru(x, weights, h0, valid, resets, h_reset, time_major, include_initial, options):
    rows = to_rows(Steps(x, valid, resets, time_major))
    batch = rows.batch
    if h0 is not None and len(batch) != 1:
        h0 = h0.reshape(rows.x.shape[1], h0.shape[-1])
    control = Control(rows.valid, rows.resets, h_reset)
    reverse, *others = options
    ((hs, h_last, h_first, _),) = directions(
        rows.x, [Direction(weights, h0, control)], (reverse,), *others, time_major=time_major or include_initial
    )
    if include_initial:
        hs = jnp.concatenate([h_first[None], hs])
    if len(batch) != 1:
        h_last = h_last.reshape(*batch, h_last.shape[-1])
    return from_rows(hs, batch, time_major), h_last if h0 is None else h_last.astype(h0.dtype)


class Directed(NamedTuple):
    """What one direction gives."""

    hs: States  # (T, B, H) in time order, 0 at steps that are not valid
    h_last: State
    h_first: State  # the state before the first step that is read
    gates: GateValues | None  # (T, B, H) each, in time order, 0 at steps that are not valid


class Direction(NamedTuple):
    """One way of reading a layer's input."""

    weights: GRUWeights
    h0: State | None  # zeros where None
    control: Control  # (T, B) in time order, as the user gives it


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6), static_argnames=("time_major",))
def directions(
    x: Array,
    given: Sequence[Direction],
    reverse: tuple[bool, ...],
    spec: GRUSpec,
    implementation: str | None,
    dtype: jnp.dtype,
    with_gates: bool = False,
    *,
    time_major: bool,
) -> list[Directed]:
    """`gru` in each of the directions `given`, on checked arguments, time-major with one batch axis.

    time_major: whether the arrays behind x and hs are; here all are seen so.

    Read backwards in time the padding comes first, and holds h0: no gather is needed to reverse a sequence.
    """
    read = [_read(x, *direction, backwards, dtype) for direction, backwards in zip(given, reverse, strict=True)]
    # Masks, flips and joins are made of time-major arrays: others would be turned round before them and after them.
    time_major = time_major or any(reverse) or given[0].control.valid is not None
    options = {"spec": spec, "implementation": implementation, "with_gates": with_gates, "time_major": time_major}
    all_ran = gru_sequences(read, **options)
    return [_in_time(ran, made, backwards) for ran, made, backwards in zip(all_ran, read, reverse, strict=True)]


def _read(
    x: Array, weights: GRUWeights, h0: State | None, control: Control, reverse: bool, dtype: jnp.dtype
) -> Recurrence:
    """The recurrence in the order in which its steps are read."""

    def flip(a: Any) -> Any:
        return a if a is None or not reverse else jnp.flip(a, 0)

    valid, reset, h_reset, state_mask, hold = control
    if reverse and reset is not None:
        reset = resets_in_reverse(reset, valid)
    x = x.astype(dtype)
    if valid is not None:
        x = jnp.where(valid[..., None], x, 0)
    weights, wide = cast(weights, dtype), state_dtype(dtype)
    start = jnp.zeros((x.shape[1], weights.w_hh.shape[0]), wide) if h0 is None else h0.astype(wide)
    control = Control(flip(valid), flip(reset), h_reset, state_mask, flip(hold))
    return Recurrence(projection(flip(x), weights), start, recurrent(weights), control)


def _in_time(ran: Ran, read: Recurrence, reverse: bool) -> Directed:
    """What was read in that order, in time order."""
    valid = read.control.valid

    def in_time(a: Array) -> Array:
        a = a if valid is None else jnp.where(valid[..., None], a, 0)
        return jnp.flip(a, 0) if reverse else a

    first = read.h0 + jnp.zeros_like(ran.h_last)  # takes the input's varying axes and sharding
    gates = None if ran.emitted is None else GateValues(*map(in_time, ran.emitted[:3]))
    return Directed(in_time(ran.hs), ran.h_last, first, gates)


def resets_in_reverse(reset: Valid, valid: Valid | None) -> Valid:
    """Where the state is reset when time runs backwards: (T, B) in time order.

    The state that enters valid step t comes from the next valid step; it is the initial one where a sequence begins
    there. The next valid step is the one of greatest T − t' among all later: a running maximum, no gather.
    """
    if valid is None:
        return jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])
    n_steps = reset.shape[0]
    to_go = n_steps - lax.broadcasted_iota(jnp.int32, reset.shape, 0)
    code = jnp.where(valid, 2 * to_go + reset.astype(jnp.int32), 0)
    later = jnp.concatenate([code[1:], jnp.zeros_like(code[:1])])
    return lax.cummax(later, axis=0, reverse=True) % 2 == 1


def _checked_weights(weights: GRUWeights) -> GRUWeights:
    """All as arrays of the shapes that `GRUWeights` names."""
    remedy = "Of a dict of parameters: GRUWeights(**parameters)."
    require(isinstance(weights, GRUWeights), "weights", "a GRUWeights", f"a {type(weights).__name__}", remedy)
    arrays: dict[str, Any] = {}
    for name, a in weights._asdict().items():
        needed = name in ("w_ih", "w_hh")
        arrays[name] = jnp.asarray(as_array(a, f"weights.{name}")) if needed or a is not None else None
        if arrays[name] is not None:
            require_floating(arrays[name], f"weights.{name}")
    w_ih, w_hh = arrays["w_ih"], arrays["w_hh"]
    for name, axes, a in (("w_hh", "(H, 3H)", w_hh), ("w_ih", "(I, 3H)", w_ih)):
        require(a.ndim == 2 and 0 not in a.shape, f"weights.{name}", f"{axes}, none of them 0", f"shape {a.shape}")
    columns = 3 * w_hh.shape[0]
    remedy = "PyTorch's weights are transposed: use grujax.interop.torch.from_torch."
    require(w_hh.shape[1] == columns, "weights.w_hh", "(H, 3H)", f"shape {w_hh.shape}", remedy)
    require_equal(w_ih.shape, (w_ih.shape[0], columns), "weights.w_ih", remedy)
    for name in ("b_ih", "b_hh", "scale_ih", "scale_hh"):
        if arrays[name] is not None:
            require_equal(arrays[name].shape, (columns,), f"weights.{name}")
    found, expected = (None if arrays[name] is None else "an array" for name in ("scale_ih", "scale_hh"))
    rule = "scale_ih and scale_hh are given together or not at all"
    require(found == expected, "weights.scale_ih", expected, found, "Layer normalisation has both.", rule=rule)
    return GRUWeights(**arrays)
