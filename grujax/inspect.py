"""Seeing inside a trained GRU: what its gates do, how long its units remember, how far back gradients reach."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.inputs import check_flags, check_inputs, from_rows
from grujax.layer import GRU
from grujax.model import GRUEncoder, GRUModel
from grujax.saving import replacing
from grujax.step import UPDATES, GateValues
from grujax.types import Array, Inputs, state_dtype

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
) -> dict[str, GateValues]:
    """r, z and n of every step, by layer: "l0", "l0_reverse", "l1", ...

        r = σ(W_ir x + b_ir + W_hr h + b_hr)        z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))

    Arguments as the model takes them, `model.time_major` included, regularisation off. Each array is (B, T, H), the
    batch first whatever `time_major` says, in time order in both directions, exactly 0 at steps that are not valid.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> found = gates(model, model.init(jax.random.key(0), x), x, lengths=[7, 2, 4])
    >>> list(found), found["l0"].z.shape
    (['l0', 'l0_reverse'], (3, 7, 20))

    Source: torch.nn.GRU.
    """
    _check_model(model)
    steps = check_inputs(x, None, lengths, mask, resets, model.time_major)
    if not isinstance(model, GRU):
        model = model.clone(pooling=None)  # gates come before pooling, which has conditions of its own
    sown = _sown(model, dict(variables), steps.x, h0, steps.valid, steps.resets)
    directions = ("", "_reverse")[: model.num_directions]
    names = [f"l{layer}{direction}" for layer in range(model.num_layers) for direction in directions]
    return {name: GateValues(*(from_rows(g, steps.batch, False) for g in sown[f"{name}_gates"][-1])) for name in names}


@partial(jax.jit, static_argnums=0)
def _sown(model, variables, x, h0, valid, resets):
    _, found = model.apply(variables, x, h0, mask=valid, resets=resets, mutable=["intermediates"])
    sown = found["intermediates"]
    for name in ("encoder", "gru"):
        sown = sown.get(name, sown)
    return sown


class Saturation(NamedTuple):
    """The share of steps, (H,) each, at which a gate is nearly closed (left) or nearly open (right)."""

    left_r: NDArray
    right_r: NDArray
    left_z: NDArray
    right_z: NDArray


def saturation(gates: GateValues, valid: ArrayLike | None = None, low: float = 0.1, high: float = 0.9) -> Saturation:
    """How often each unit's gates are saturated.

        left = mean_t [g_t < low]        right = mean_t [g_t > high]        g = r, z

    Args:
      gates: those of one layer, (..., T, H) each.
      valid: bool (..., T), which steps count; all where None. Steps that are not valid have gates of 0: say which.
      low, high: what counts as closed and as open.

    >>> from grujax.step import GateValues
    >>> z = np.array([[0.05], [0.5], [0.95], [0.99]])
    >>> print(saturation(GateValues(r=z, z=z, n=z)).right_z)
    [0.5]

    Source: Karpathy, Johnson and Fei-Fei 2015, Visualizing and Understanding Recurrent Networks, arXiv 1506.02078.
    """
    require(low < high, "low", f"less than high = {high}", low)
    r, z = _counted(gates, valid)
    return Saturation((r < low).mean(0), (r > high).mean(0), (z < low).mean(0), (z > high).mean(0))


def time_scale(gates: GateValues, valid: ArrayLike | None = None, update: str = "keep") -> NDArray:
    """How many steps each unit remembers: (H,), infinite where nothing is ever forgotten, 0 where all is, once.

        τ = −1 / mean_t log k_t        k = z with update="keep", 1 − z with update="take"

    Over n steps the product of the k is left of a state on the direct path, about exp(−n / τ); for a constant k near 1
    that is τ = 1 / (1 − k), the time constant of a leaky unit. What a unit remembers through other units, and what
    zoneout keeps, is not in it.

    Args: gates and valid as in `saturation`; update as the model has it.

    >>> from grujax.step import GateValues
    >>> z = np.full((3, 7, 2), 0.9)
    >>> print(time_scale(GateValues(z, z, z)).round(2))
    [9.49 9.49]

    Source: Tallec and Ollivier 2018, Can Recurrent Neural Networks Warp Time?, arXiv 1804.11188.
    """
    require(update in UPDATES, "update", f"one of {list(UPDATES)}", repr(update))
    _, z = _counted(gates, valid)
    require(bool(((z >= 0) & (z <= 1)).all()), "gates.z", "values from 0 to 1", f"{z.min()} to {z.max()}")
    with np.errstate(divide="ignore"):
        logs = np.log(z) if update == "keep" else np.log1p(-z)
        return 1 / np.abs(logs.mean(0))  # the logs are 0 or less: abs turns the sign, that of 0 too


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
    """‖∂ loss / ∂ x_t‖₂, over the features of each step: (B, T), the batch first whatever `model.time_major` says.

    How far back a loss is felt: a norm that falls towards the steps read first is a vanishing gradient.

    Args:
      loss: of what the model returns, to a scalar. None is half the sum of squares of the model's output, whose
        gradient is the output itself; of a `GRU`, which also returns its states, that of the last states of its top
        layer, as pooling="last" has them.
      others: as the model takes them, regularisation off. x is what the model is given: raw, where it standardises.

    Returns:
      float64, exactly 0 at steps that are not valid.

    >>> import jax, jax.numpy as jnp
    >>> model = GRUModel(hidden_size=20, output_size=5)
    >>> x = jnp.ones((3, 7, 10))
    >>> norms = gradient_norm(model, model.init(jax.random.key(0), x), x, lambda y: y[:, 0].sum(), lengths=[7, 2, 4])
    >>> norms.shape, int((norms > 0).sum())
    ((3, 7), 13)

    Source: Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    """
    _check_model(model)
    x = check_inputs(x, None, None, time_major=model.time_major).x
    options: dict[str, Any] = {"lengths": lengths, "mask": mask, "resets": resets}
    if isinstance(model, GRU):
        require(segments is None and num_segments is None, "segments", "None for a GRU, which does not pool", "some")
    else:
        options |= {"segments": segments, "num_segments": num_segments}

    def value(x: Array) -> Array:
        outputs: Any = model.apply(dict(variables), x, h0, **options)
        if loss is None:
            return _half_sum_of_squares(outputs[1][-model.num_directions :] if isinstance(model, GRU) else outputs)
        result = loss(outputs)
        require(jnp.shape(result) == (), "loss", "a function that gives a scalar", f"shape {jnp.shape(result)}")
        return result

    gradient = np.asarray(jax.grad(value)(x)).astype(np.float64)  # wide: squares of vanishing gradients underflow
    return np.linalg.norm(np.moveaxis(gradient, 0, -2) if model.time_major else gradient, axis=-1)


def plot_saturation(saturations: Mapping[str, Saturation] | Saturation, path: str | Path | None = None) -> "Figure":
    """A panel a layer, a dot a unit: how often a gate is closed, across, and open, upwards; both add up to 1 at most.

    Dots by the axes are switches, dots at the origin never saturate. `path`: also written there as a PNG, whole or
    not at all. Source: Karpathy, Johnson and Fei-Fei 2015, arXiv 1506.02078.
    """
    layers = _by_layer(saturations, "saturations")
    columns = min(len(layers), 4)
    rows = -(-len(layers) // columns)
    figure = _figure(max(3.0 * columns, 4.2), 2.9 * rows + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, found) in zip(panels, layers.items(), strict=False):
        require(isinstance(found, Saturation), "saturations", "a Saturation, or one a layer", type(found).__name__)
        axes.plot([0, 1], [1, 0], color="0.7", linewidth=1, zorder=0)
        dots: dict[str, Any] = {"s": 26, "alpha": 0.55, "linewidths": 0, "clip_on": False, "zorder": 3}
        axes.scatter(found.left_r, found.right_r, color="C0", label="reset gate r", **dots)
        axes.scatter(found.left_z, found.right_z, color="C1", label="update gate z", **dots)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=name)
        axes.grid(alpha=0.3)
    for axes in panels[len(layers) :]:
        axes.remove()
    panels[0].legend(frameon=False, loc="upper right", fontsize="small", handletextpad=0.1)
    figure.suptitle("Saturation of the gates, a dot a unit")
    figure.supxlabel("closed (left-saturated): share of steps")
    figure.supylabel("open (right-saturated): share of steps")
    return _written(figure, path)


def plot_time_scale(time_scales: Mapping[str, ArrayLike] | ArrayLike, path: str | Path | None = None) -> "Figure":
    """A curve a layer: the time scales of its units, sorted. `path`: also written there as a PNG, whole or not at all.

    Units that forget nothing, or all at once, are triangles on the upper or lower edge.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for i, (name, given) in enumerate(_by_layer(time_scales, "time_scales").items()):
        tau = np.sort(np.asarray(given, float))
        require(tau.ndim == 1, "time_scales", "shape (H,), or one such a layer", f"shape {tau.shape}")
        unit, colour = np.arange(1, len(tau) + 1), f"C{i % 10}"
        finite = np.where((tau > 0) & np.isfinite(tau), tau, np.nan)
        axes.plot(unit, finite, marker=".", color=colour, label=name)
        for edge, at in ((0, tau == 0), (1, tau == np.inf)):
            if at.any():
                y, where = np.full(at.sum(), edge), axes.get_xaxis_transform()
                axes.plot(unit[at], y, "v^"[edge], color=colour, transform=where, clip_on=False)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="unit, sorted", ylabel="time scale τ (steps)", yscale="log", title="Memory of the units")
    axes.grid(alpha=0.3)
    if isinstance(time_scales, Mapping):
        axes.legend(frameon=False)
    return _written(figure, path)


def plot_gradient_norm(norms: ArrayLike, path: str | Path | None = None) -> "Figure":
    """(B, T) or (T,): a thin curve a sequence, their median thick. Zeros, steps that are not valid, are left out.

    `path`: also written there as a PNG, whole or not at all.
    """
    found = np.asarray(norms, float)
    expected = "shape (B, T) or (T,), at least one step"
    require(found.ndim in (1, 2) and found.size > 0, "norms", expected, f"shape {found.shape}")
    there = np.ma.masked_where(~(found > 0), found).reshape(-1, found.shape[-1])
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    steps, few = np.arange(found.shape[-1]), found.shape[-1] <= 50
    style: dict[str, Any] = {"color": "C0", "alpha": max(0.1, min(0.6, 4 / len(there))), "linewidth": 1}
    for row in there.filled(np.nan):
        axes.plot(steps, row, marker="." if few else None, **style)
    if len(there) > 1:
        median = np.ma.median(there, axis=0)
        axes.plot(steps, np.ma.filled(median, np.nan), color="C1", linewidth=2, label="median of the sequences")
        axes.legend(frameon=False)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="time (steps)", ylabel="‖∂ loss / ∂ x‖ (loss per unit of x)", yscale="log")
    axes.set_title("Reach of the gradient")
    axes.grid(alpha=0.3)
    return _written(figure, path)


def _check_model(model: Any) -> None:
    require(isinstance(model, MODELS), "model", "a GRU, GRUEncoder or GRUModel", type(model).__name__)


def _counted(gates: GateValues, valid: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """r and z at the steps that count, as float64 (N, H)."""
    one = isinstance(gates, tuple) and len(gates) == 3
    require(one, "gates", "the GateValues of one layer", type(gates).__name__, 'Of a model: gates(...)["l0"].')
    shapes = [np.shape(g) for g in gates]
    alike = len(set(shapes)) == 1 and len(shapes[0]) >= 2
    require(alike, "gates", "r, z and n of one shape (..., T, H)", ", ".join(map(str, shapes)))
    flags = check_flags(np.ones(shapes[0][:-1], bool) if valid is None else valid, "valid", shapes[0][:-1])
    counts = np.asarray(flags)
    require(bool(counts.any()), "valid", "at least one step", "none")
    r, z = (np.asarray(g).astype(np.float64)[counts] for g in gates[:2])
    return r, z


def _half_sum_of_squares(outputs: Any) -> Array:
    wide = [y.astype(state_dtype(y.dtype)) for y in jax.tree.leaves(outputs)]
    return sum((jnp.square(y).sum() for y in wide[1:]), start=jnp.square(wide[0]).sum()) / 2


def _by_layer(given: Any, name: str) -> dict[str, Any]:
    layers = dict(given) if isinstance(given, Mapping) else {"": given}
    require(bool(layers), name, "at least one layer", "none")
    return layers


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib", "an installed package", "none", "pip install 'grujax[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _written(figure: "Figure", path: str | Path | None) -> "Figure":
    if path is not None:
        require(Path(path).suffix.lower() == ".png", "path", "a name that ends in .png", f"{str(path)!r}")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return figure
