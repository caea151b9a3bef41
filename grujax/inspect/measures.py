"""Measures of a GRU: values and saturation of its gates, time scales of its units, gradient norms by step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from grujax.core.inputs import check_flags, check_inputs, from_rows
from grujax.errors import require
from grujax.kernels.step import UPDATES
from grujax.linen import GRU, GRUEncoder, GRUModel
from grujax.types import Array, Gates, Inputs, state_dtype

MODELS = (GRU, GRUEncoder, GRUModel)


def gates(
    model: GRU | GRUEncoder | GRUModel,
    variables: Mapping[str, Any],
    x: Inputs,
    h0: Array | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> dict[str, Gates]:
    """Returns r, z and n of every step, by layer: "l0", "l0_reverse", "l1", ...

        r = σ(W_ir x + b_ir + W_hr h + b_hr)        z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))

    The arguments are those of the model's call, in the layout of `model.time_major`. Regularisation is off. Each array
    is (B, T, H), batch-major even if `time_major` is True, in time order in both directions, and exactly 0 at invalid
    steps.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> by_layer = gates(model, model.init(jax.random.key(0), x), x, lengths=[7, 2, 4])
    >>> list(by_layer), by_layer["l0"].z.shape
    (['l0', 'l0_reverse'], (3, 7, 20))

    Source: torch.nn.GRU.
    """
    check_model(model)
    steps = check_inputs(x, None, lengths, mask, resets, model.time_major)
    if not isinstance(model, GRU):
        model = model.clone(pooling=None)  # the gates do not depend on pooling, which may refuse the input
    sown = _sown(model, dict(variables), steps.x, h0, steps.valid, steps.resets)
    names = [name for names in model.cell_names for name in names]
    return {
        name: Gates(*(from_rows(g.swapaxes(0, 1), steps.batch, False) for g in sown[f"{name}_gates"][-1]))
        for name in names
    }


@partial(jax.jit, static_argnums=0)
def _sown(model, variables, x, h0, valid, resets):
    _, collections = model.apply(variables, x, h0, mask=valid, resets=resets, mutable=["intermediates"])
    sown = collections["intermediates"]
    for name in ("encoder", "gru"):
        sown = sown.get(name, sown)
    return sown


class Saturation(NamedTuple):
    """The result of `saturation`: shares of steps, float64 (H,) each.

    `left` counts the steps at which a gate is nearly closed, `right` those at which it is nearly open. The suffix names
    the gate: r is the reset gate, z the update gate.
    """

    left_r: NDArray
    right_r: NDArray
    left_z: NDArray
    right_z: NDArray


def saturation(gates: Gates, valid: ArrayLike | None = None, low: float = 0.1, high: float = 0.9) -> Saturation:
    """Returns how often each unit's gates are saturated.

        left = mean_t [g_t < low]        right = mean_t [g_t > high]        g = r, z

    Args:
      gates: the gates of one layer, (..., T, H) each.
      valid: bool (..., T), the steps to count. None: all. Pass it for padded sequences: gates are 0 in the padding.
      low, high: a gate below `low` counts as closed, a gate above `high` as open.

    Raises:
      InputError: for gates that are not one layer's, for `valid` without a True, and unless `low` < `high`.

    >>> from grujax.types import Gates
    >>> z = np.array([[0.05], [0.5], [0.95], [0.99]])
    >>> print(saturation(Gates(r=z, z=z, n=z)).right_z)
    [0.5]

    Source: Karpathy, Johnson and Fei-Fei 2015, Visualizing and Understanding Recurrent Networks, arXiv 1506.02078.
    """
    require(low < high, "low", f"less than high = {high}", low)
    r, z = _counted(gates, valid)
    return Saturation((r < low).mean(0), (r > high).mean(0), (z < low).mean(0), (z > high).mean(0))


def time_scale(gates: Gates, valid: ArrayLike | None = None, update: str = "keep") -> NDArray:
    """Returns how many steps each unit remembers: (H,).

        τ = −1 / mean_t log k_t        k = z with update="keep", 1 − z with update="take"

    k is the share of the old state that a step keeps. τ is infinite if k is 1 at every step, and 0 if k is 0 at any
    step. After n steps about exp(−n / τ) of a state is left on the direct path. For a constant k near 1, τ is about
    1 / (1 − k), the time constant of a leaky unit. Memory through other units and through zoneout is not counted.

    Args:
      gates, valid: as in `saturation`.
      update: the model's `update`.

    >>> from grujax.types import Gates
    >>> z = np.full((3, 7, 2), 0.9)
    >>> print(time_scale(Gates(z, z, z)).round(2))
    [9.49 9.49]

    Source: Tallec and Ollivier 2018, Can Recurrent Neural Networks Warp Time?, arXiv 1804.11188.
    """
    require(update in UPDATES, "update", f"one of {list(UPDATES)}", repr(update))
    _, z = _counted(gates, valid)
    require(bool(((z >= 0) & (z <= 1)).all()), "gates.z", "values from 0 to 1", f"{z.min()} to {z.max()}")
    with np.errstate(divide="ignore"):
        logs = np.log(z) if update == "keep" else np.log1p(-z)
        return 1 / np.abs(logs.mean(0))  # the logs are 0 or less; abs also turns -0 into 0, so that 1/0 is +inf


def gradient_norm(
    model: GRU | GRUEncoder | GRUModel,
    variables: Mapping[str, Any],
    x: Inputs,
    loss: Callable[[Any], Array] | None = None,
    *,
    h0: Array | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    num_segments: int | None = None,
) -> NDArray:
    """Returns ‖∂ loss / ∂ x_t‖₂ over the features of each step: (B, T), batch-major even if `model.time_major` is True.

    It shows how far back a loss reaches. A norm that falls towards the steps read first is a vanishing gradient.

    Args:
      x: the model's input, raw if the model standardises it.
      loss: a function from the model's outputs to a scalar. None is half the sum of squares of the model's output,
        whose gradient is the output itself. For a `GRU`, which also returns its states, it is half the sum of squares
        of the last states of its top layer, the states that pooling="last" reads.
      h0, lengths, mask, resets, segments, num_segments: as in the model's call. Regularisation is off.

    Returns:
      float64, exactly 0 at invalid steps.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> x = jnp.ones((3, 7, 10))
    >>> norms = gradient_norm(model, model.init(jax.random.key(0), x), x, lambda y: y[:, 0].sum(), lengths=[7, 2, 4])
    >>> norms.shape, int((norms > 0).sum())
    ((3, 7), 13)

    Source: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    """
    check_model(model)
    x = check_inputs(x, None, None, time_major=model.time_major).x
    options: dict[str, Any] = {"lengths": lengths, "mask": mask, "resets": resets}
    if isinstance(model, GRU):
        pools = segments is not None or num_segments is not None
        require(not pools, "segments", "None for a GRU, which does not pool", "segments or num_segments")
    else:
        options |= {"segments": segments, "num_segments": num_segments}

    def value(x: Array) -> Array:
        outputs: Any = model.apply(dict(variables), x, h0, **options)
        if loss is None:
            leaves = jax.tree.leaves(outputs[1][-model.num_directions :] if isinstance(model, GRU) else outputs)
            first, *others = (jnp.square(y.astype(state_dtype(y.dtype))).sum() for y in leaves)
            return sum(others, start=first) / 2
        result = loss(outputs)
        require(jnp.shape(result) == (), "loss", "a function that returns a scalar", f"shape {jnp.shape(result)}")
        return result

    gradient = np.asarray(jax.grad(value)(x)).astype(np.float64)  # float64: squares of vanishing gradients underflow
    return np.linalg.norm(np.moveaxis(gradient, 0, -2) if model.time_major else gradient, axis=-1)


def check_model(model: Any) -> None:
    require(isinstance(model, MODELS), "model", "a GRU, GRUEncoder or GRUModel", type(model).__name__)


def _counted(gates: Gates, valid: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """Returns r and z at the steps to count, as float64 (N, H)."""
    one_layer = isinstance(gates, tuple) and len(gates) == 3
    require(one_layer, "gates", "the Gates of one layer", type(gates).__name__, 'For example gates(...)["l0"].')
    shapes = [np.shape(g) for g in gates]
    equal = len(set(shapes)) == 1 and len(shapes[0]) >= 2
    require(equal, "gates", "r, z and n of one shape (..., T, H)", ", ".join(map(str, shapes)))
    flags = check_flags(np.ones(shapes[0][:-1], bool) if valid is None else valid, "valid", shapes[0][:-1])
    counted = np.asarray(flags)
    require(bool(counted.any()), "valid", "at least one step", "none")
    r, z = (np.asarray(g).astype(np.float64)[counted] for g in gates[:2])
    return r, z
