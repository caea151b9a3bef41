"""A GRU as a dynamical system: its states, their fixed points, and the linear dynamics around a fixed point.

A state is the concatenated state of all L layers, S = L*H numbers, the first layer first.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from grujax.arrays import as_array
from grujax.core.inputs import check_inputs
from grujax.errors import require
from grujax.inspect.measures import check_model
from grujax.linen import GRU, GRUEncoder, GRUModel
from grujax.types import Array, Inputs


def states(
    model: GRU | GRUEncoder | GRUModel,
    variables: Mapping[str, Any],
    x: Inputs,
    h0: Array | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    resets: ArrayLike | None = None,
) -> NDArray:
    """Returns the state after every step: (B, T, S), batch-major even if `model.time_major` is True.

    The arguments are those of the model's call. Regularisation is off. The state does not change at invalid steps.

    Raises:
      InputError: for a bidirectional or reverse model and for `steps_per_frame` above 1, which have no single state
        between two steps; and for any input that the model refuses.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20, num_layers=2)
    >>> x = jnp.ones((3, 7, 10))
    >>> states(model, model.init(jax.random.key(0), x), x, lengths=[7, 2, 4]).shape
    (3, 7, 40)
    """
    _check_steps(model)
    steps = check_inputs(x, None, lengths, mask, resets, model.time_major)
    inputs = steps.x, steps.valid, steps.resets
    if not model.time_major:
        inputs = jax.tree.map(lambda a: jnp.moveaxis(a, len(steps.batch), 0), inputs)
    hs = np.asarray(_run(model, dict(variables), h0, inputs))  # (T, L, *batch, H)
    hs = np.moveaxis(hs, (0, 1), (-3, -2))
    return hs.reshape(*hs.shape[:-2], model.num_layers * model.hidden_size)


class FixedPoints(NamedTuple):
    """The P fixed points that `fixed_points` returns, sorted by speed, and the linear map around each."""

    points: NDArray  # (P, S)
    speeds: NDArray  # (P,), q at each point, the smallest first
    jacobians: NDArray  # (P, S, S), ∂F_i / ∂h_j
    eigenvalues: NDArray  # (P, S), complex, the largest |λ| first

    @property
    def stable(self) -> NDArray:
        """(P,) bool, True where every |λ| is below 1, so that small perturbations decay."""
        return np.abs(self.eigenvalues).max(-1) < 1


def fixed_points(
    model: GRU | GRUEncoder | GRUModel,
    variables: Mapping[str, Any],
    x: ArrayLike,
    starts: ArrayLike,
    *,
    max_speed: float = 1e-20,
    apart: float = 1e-3,
) -> FixedPoints:
    """Finds fixed points of the state under a constant input x: F(h) = h, where F is one step of the model.

        q(h) = ½ |F(h) − h|²

    is minimised from every start with the Levenberg-Marquardt method (`scipy.optimize.root`), in float64 for every
    dtype of the parameters. Fixed points that no start leads to are not found: pass a hundred states or more.

    Args:
      x: (I,), in the units that the model takes.
      starts: (..., S), states of a run, as `states` returns them.
      max_speed: minima with a larger q are left out; at a fixed point q is about 1e-30. A larger value also returns
        slow points, among them points that no run comes near, where z is 1 to many digits.
      apart: among minima closer to each other than this, only the one with the smallest q is kept.

    Raises:
      InputError: for the models that `states` refuses, and for `x` or `starts` with another shape.

    >>> import jax, jax.numpy as jnp
    >>> model = GRU(20)
    >>> x = jax.random.normal(jax.random.key(1), (3, 7, 10))
    >>> variables = model.init(jax.random.key(0), x)
    >>> fixed = fixed_points(model, variables, jnp.zeros(10), states(model, variables, x))
    >>> fixed.points.shape, fixed.stable
    ((1, 20), array([ True]))

    Source: Sussillo and Barak 2013, Opening the Black Box, doi 10.1162/NECO_a_00409.
    """
    from scipy.optimize import root  # a dependency of jax

    _check_steps(model)
    initial = np.asarray(as_array(starts, "starts"), np.float64)
    size = model.num_layers * model.hidden_size
    fits = initial.ndim >= 1 and initial.shape[-1] == size and initial.size > 0
    require(fits, "starts", f"shape (..., {size}), at least one state", f"shape {initial.shape}")
    with jax.enable_x64(True):
        model_step = _one_step(model, dtype=None, param_dtype=jnp.float64, implementation="autodiff")
        wide: Any = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (dict(variables), as_array(x, "x")))
        parameters, constant = wide
        require(constant.ndim == 1, "x", "shape (I,), the input of one step", f"shape {constant.shape}")

        def step(h: Array) -> Array:
            return model_step(parameters, constant[None], h.reshape(model.num_layers, -1)).reshape(-1)

        residual = jax.jit(lambda h: step(h) - h)
        jacobian = jax.jit(jax.jacfwd(step))

        def minimum(h: NDArray) -> NDArray:
            slope: Callable[[NDArray], NDArray] = lambda h: np.asarray(jacobian(h)) - np.eye(size)  # noqa: E731
            return root(lambda h: np.asarray(residual(h)), h, jac=slope, method="lm", options={"maxiter": 1000}).x

        minima = np.stack([minimum(h) for h in initial.reshape(-1, size)])
        speeds = np.square(np.asarray(jax.vmap(residual)(minima))).sum(-1) / 2
        kept: list[int] = []
        for i in np.argsort(speeds):
            distances = np.linalg.norm(minima[kept] - minima[i], axis=-1)
            if speeds[i] <= max_speed and (distances > apart).all():
                kept.append(int(i))
        jacobians = np.asarray(jax.vmap(jacobian)(minima[kept]))
    eigenvalues = np.linalg.eigvals(jacobians).astype(complex)
    order = np.argsort(-np.abs(eigenvalues), axis=-1)
    return FixedPoints(minima[kept], speeds[kept], jacobians, np.take_along_axis(eigenvalues, order, -1))


def time_constants(eigenvalues: ArrayLike) -> NDArray:
    """Returns, for each eigenvalue, the number of steps in which its mode shrinks to 1/e near a fixed point.

        τ = −1 / ln |λ|

    τ is infinite where |λ| = 1, 0 where λ = 0, and negative where |λ| > 1: the mode grows e-fold in −τ steps.

    This is the memory of the network around a point; `time_scale` is the memory of a single unit by its update gate.

    >>> print(time_constants([0.9, -0.9, 1.0, 0.0]).round(2))
    [9.49 9.49  inf 0.  ]

    Source: Maheswaranathan et al. 2019, arXiv 1906.10720, section 3.
    """
    with np.errstate(divide="ignore"):
        return 1 / (0.0 - np.log(np.abs(np.asarray(eigenvalues))))


class PrincipalComponents(NamedTuple):
    """The result of `principal_components`. The coordinates of states are `(states - mean) @ axes.T`."""

    mean: NDArray  # (S,)
    axes: NDArray  # (K, S), orthonormal, the largest variance first; K = min(N, S)
    shares: NDArray  # (K,), the share of the total variance along each axis


def principal_components(states: ArrayLike) -> PrincipalComponents:
    """Returns the orthogonal directions along which N states (..., S) vary most.

        states − mean = U Σ Vᵀ        axes = Vᵀ        shares = Σ² / sum Σ²

    >>> components = principal_components([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    >>> print(components.mean, components.shares.round(6))
    [1. 1.] [1. 0.]

    Source: Pearson 1901; `numpy.linalg.svd`.
    """
    flat = np.asarray(as_array(states, "states"), np.float64)
    require(flat.ndim >= 2, "states", "shape (..., S), several states", f"shape {flat.shape}")
    require(bool(np.isfinite(flat).all()), "states", "finite numbers", "NaN or infinity")
    flat = flat.reshape(-1, flat.shape[-1])
    mean = flat.mean(0)
    _, singular, axes = np.linalg.svd(flat - mean, full_matrices=False)
    variances = np.square(singular)
    require(variances.sum() > 0, "states", "states that differ", "states that are all equal")
    return PrincipalComponents(mean, axes, variances / variances.sum())


def _check_steps(model: Any) -> None:
    """Raises `InputError` unless the state between two steps holds all that the model remembers."""
    check_model(model)
    forward = model.num_directions == 1 and not model.reverse
    require(forward, "model", "a model that only reads forward", "a bidirectional or reverse model")
    frame = getattr(model, "steps_per_frame", 1)
    require(frame == 1, "model", "steps_per_frame=1", frame, "The state after a frame belongs to several steps.")


def _one_step(model: Any, **fields: Any) -> Callable[..., Any]:
    """Returns a function (variables, x (1, *batch, I), h (L, *batch, H), mask=, resets=) -> the next h."""
    step, returned = model.clone(time_major=True, **fields), {}
    if not isinstance(model, GRU):
        step, returned = step.clone(pooling=None), {"return_state": True}
    apply: Callable[..., Any] = step.apply
    return lambda variables, x, h, **flags: apply(variables, x, h, **flags, **returned)[1]


@partial(jax.jit, static_argnums=0)
def _run(model, variables, h0, inputs):
    x, *_ = inputs
    step = _one_step(model)
    if h0 is None:
        h0 = model.apply(variables, None, x.shape[1:], method="initialize_carry")

    def next_state(h, inputs):
        x, valid, resets = jax.tree.map(lambda a: a[None], inputs)
        h = step(variables, x, h, mask=valid, resets=resets)
        return h, h

    return jax.lax.scan(next_state, h0, inputs)[1]
