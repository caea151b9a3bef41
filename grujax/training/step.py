"""Loss, optimizer and one training step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grujax.core.heads import of_head
from grujax.core.initializers import drawn
from grujax.data import Batch
from grujax.data.targets import named
from grujax.linen import GRUEnsemble, GRUModel
from grujax.training.config import TrainConfig
from grujax.types import Array


class TrainState(NamedTuple):
    """What one training step hands to the next."""

    params: Any
    optimizer: optax.OptState
    averaging: Any  # optax.EmaState
    loss: Array  # the sum over the rows since the epoch began


class Draws(NamedTuple):
    """What a step draws at random on the host, by the seed and the number of the step: nothing of it is a state."""

    share: np.ndarray  # (B,) float32, of several members (B, N): how much of each row `mix` keeps
    seed: np.ndarray  # () uint32, of several members (N,): of what is drawn on the device


class Steps(NamedTuple):
    """What several steps take, one after the other: each array has an axis of so many in front."""

    bucket: np.ndarray  # (S,) int32: to which of the boundaries the rows of a step are padded
    batch: Batch  # padded to the last of the boundaries
    draws: Draws


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm; the learning rate rises linearly, then falls as a cosine to zero.

    With `accumulate` it takes the mean gradient of so many steps, and does nothing in the others.
    """
    moves = num_steps // config.accumulate
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, round(config.warmup * moves)), max(2, moves)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.adamw(schedule, weight_decay=config.weight_decay)
    )
    if config.accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()


def each_member(config: TrainConfig, function: Callable[..., Any], *axes: Any) -> Callable[..., Any]:
    """The function over all members of an ensemble at once, along those axes of its arguments; of one model itself."""
    return function if config.members == 1 else jax.vmap(function, in_axes=axes)


@partial(jax.jit, static_argnums=(0, 1))
def new_parameters(model: Any, channels: int, key: Array) -> Any:
    """Those with which training begins, in one program: each initialiser would compile its own."""
    return model.init(key, jnp.zeros((1, 1, channels), jnp.float32))["params"]


def initial_state(params: Any, optimizer: optax.GradientTransformation, config: TrainConfig) -> TrainState:
    """The state before the first step."""

    def state(params: Any) -> TrainState:
        return TrainState(params, optimizer.init(params), optax.ema(0.0).init(params), jnp.zeros((), jnp.float32))

    return each_member(config, state, 0)(params)


def row_losses(
    outputs: Array,
    y: Array,
    statistics: Mapping[str, Array],
    label_smoothing: float = 0.0,
    quantiles: tuple[float, ...] = (),
) -> Array:
    """(B,): cross-entropy of logits (B, K) and classes y (B,) integers; mean squared error, in units of the training
    targets' variance, of outputs (B, K) and targets y (B, K) or, for K = 1, (B,), floats. With outputs and y a step
    (B, T), and whatever where a step has no label or target.

    With Q `quantiles` the outputs are (..., K*Q), and of each the pinball loss, in units of the standard deviation,
    max(q e, (q - 1) e) with e = y - output, is averaged."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        targets = optax.smooth_labels(jax.nn.one_hot(y, outputs.shape[-1], dtype=outputs.dtype), label_smoothing)
        return optax.softmax_cross_entropy(outputs, targets)
    rows = outputs.shape[:-1]
    std = statistics["output_std"].reshape(*(1 for _ in rows), -1)
    if not quantiles:
        return optax.squared_error(outputs / std, y.reshape(outputs.shape) / std).mean(-1)
    levels = jnp.asarray(quantiles, outputs.dtype).reshape(*(1 for _ in rows), 1, -1)
    output, std = (a.reshape(*a.shape[:-1], -1, len(quantiles)) for a in (outputs, std))
    error = (y.reshape(*rows, -1, 1) - output) / std
    return jnp.maximum(levels * error, (levels - 1) * error).mean((-2, -1))


def labelled(y: Array, lengths: Array) -> Array:
    """(B, T) bool: the steps of each row that have a label (B, T), 0 or more, or a target (B, T, K), not NaN."""
    known = y >= 0 if jnp.issubdtype(y.dtype, jnp.integer) else ~jnp.isnan(y[..., 0])
    return known & (jnp.arange(y.shape[1])[None] < lengths[:, None])


def mixed_loss(
    config: TrainConfig,
    outputs: Array,
    y: Array,
    statistics: Mapping[str, Array],
    lengths: Array,
    share: Array,
    partner: Array,
    weight: Array,
) -> tuple[Array, Array]:
    """Mean loss of a batch whose rows `mix` mixed, and the same times the number of rows.

    The mean goes over the rows, or, with a label or target a step, over the steps that have one and are not padding.
    Each counts as its row's weight, and for the rest of its share as that of the partner. Weights are 1 in the mean
    over all rows, not over a batch: the divisor does not hold them.
    """
    losses = partial(
        row_losses, statistics=statistics, label_smoothing=config.label_smoothing, quantiles=config.quantiles
    )
    rows = jnp.sum(weight > 0)
    if outputs.ndim == 2:
        own, other = losses(outputs, y), losses(outputs, y[partner])
        total = jnp.sum(_between(share, own * weight, other * weight[partner]))
        return total / rows, total
    total = count = jnp.zeros((), outputs.dtype)
    for target, part, counts in ((y, share, weight), (y[partner], 1 - share, weight[partner])):
        known = labelled(target, lengths)
        filled = jnp.where(known if target.ndim == 2 else known[..., None], target, 0)  # NaN times 0 would be NaN
        total += jnp.sum(losses(outputs, filled) * jnp.where(known, (part * counts)[:, None], 0))
        count += jnp.sum(jnp.where(known, (part * (counts > 0))[:, None], 0))
    mean = total / jnp.where(count > 0, count, 1)
    return mean, mean * rows


def disturb(key: Array, x: Array, std: Array, config: TrainConfig) -> Array:
    """x (B, T, I) with normal noise of `input_noise` standard deviations `std` (I,) at every step, and of
    `input_offset` that is the same at every step of a sequence, as another microphone would add."""
    each_step, each_row = jax.random.split(key)
    noise = config.input_noise * drawn(lambda flat: jax.random.normal(each_step, flat, x.dtype), x.shape)
    rows = x.shape[0], 1, x.shape[2]
    offset = config.input_offset * drawn(lambda flat: jax.random.normal(each_row, flat, x.dtype), rows)
    return x + (noise + offset) * std[None, None]


def draw(config: TrainConfig, step: int) -> Draws:
    """The draws of a step: its seed, and for each row max(s, 1 − s) of a draw s from Beta(mixup, mixup).

    Drawn by NumPy: XLA takes nearly half as long to compile that sampler as all the rest of the step.
    """
    rng, members = np.random.default_rng((config.seed, step)), () if config.members == 1 else (config.members,)
    shape = (config.batch_size, *members)
    share = rng.beta(config.mixup, config.mixup, shape) if config.mixup else np.ones(shape)
    return Draws(
        np.maximum(share, 1 - share).astype(np.float32), rng.integers(2**32, size=members or None, dtype=np.uint32)
    )


def mix(share: Array, x: Array, lengths: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    """mixup (Zhang et al. 2018, arXiv 1710.09412) of each row with the row before it, both cut to the shorter.

        x = share x + (1 - share) x[partner]

    share (B,), x (B, T, I), lengths (B,), weight (B,), 0 of filler -> share, which is now 1 where a row or its partner
    is filler, x, lengths, partner (B,).
    """
    partner = jnp.roll(jnp.arange(len(lengths)), 1)
    share = jnp.where((weight > 0) & (weight[partner] > 0), share, 1)
    lengths = jnp.where(share < 1, jnp.minimum(lengths, lengths[partner]), lengths)
    return share, _between(share[:, None, None], x, x[partner]), lengths, partner


def _between(share: Array, a: Array, b: Array) -> Array:
    return share * a + (1 - share) * b


def gradient(
    model: GRUModel,
    config: TrainConfig,
    params: Any,
    statistics: Mapping[str, Array],
    batch: Batch,
    draws: Draws,
    axis: str | None = None,
) -> tuple[Any, Array]:
    """The gradient of the mean loss of a batch's rows, disturbed and mixed, each times its weight; and their sum.

    Of several heads it is that of the sum of their losses. axis: of the mesh, which the rows are split over."""
    disturb_key, dropout_key = jax.random.split(jax.random.key(draws.seed))
    x, lengths = jnp.asarray(batch.x), jnp.asarray(batch.lengths)
    y, weight = (jax.tree.map(jnp.asarray, named(a)) for a in (batch.y, batch.weight))
    weight = {name: weight.get(name, weight.get("")) for name in y}
    x = disturb(disturb_key, x, statistics["input_std"], config)
    share, x, lengths, partner = mix(jnp.asarray(draws.share), x, lengths, next(iter(weight.values())))

    def loss(params: Any) -> tuple[Array, Array]:
        variables = {"params": params, "statistics": statistics}
        outputs = named(by_rows(model, variables, x, lengths, dropout_key, axis))
        mean = total = jnp.zeros((), jnp.float32)
        for name, target in y.items():
            output, own = outputs[name].astype(jnp.float32), of_head(statistics, name)
            found = mixed_loss(config, output, target, own, lengths, share, partner, weight[name])
            mean, total = mean + found[0], total + found[1]
        return mean, total

    return jax.grad(loss, has_aux=True)(params)


def by_rows(model: GRUModel, variables: Any, x: Array, lengths: Array, key: Array, axis: str | None) -> Any:
    """The model in training. Each device runs its rows by itself, along an axis of the mesh that is Explicit meanwhile.

    Under an Auto axis XLA splits the program, and runs the plain loop, no kernel.
    """

    def apply(variables: Any, x: Array, lengths: Array, key: Array) -> Any:
        return model.apply(variables, x, lengths=lengths, deterministic=False, rngs={"dropout": key})

    if axis is None:
        return apply(variables, x, lengths, key)
    whole, rows = jax.P(), jax.P(axis)
    on_each: Any = jax.sharding.explicit_axes(apply, axes=axis, in_sharding=(whole, rows, rows, whole))
    return on_each(variables, x, lengths, key)


@partial(jax.jit, static_argnums=(0, 1, 2, 7), donate_argnums=(3,))
def train_step(
    model: GRUModel,
    config: TrainConfig,
    num_steps: int,
    state: TrainState,
    statistics: Mapping[str, Array],
    batch: Batch,
    draws: Draws,
    axis: str | None = None,
) -> TrainState:
    """One step of all members at once; to the state's loss it adds those of the batch's rows, each times its weight.

    axis: of the mesh that is set, which the rows are split over; None on one device.

    `model`, `config` and `num_steps` are compared by value: equal ones share one compilation.
    """
    return apply_gradients(
        config, num_steps, state, *member_gradients(model, config, state, statistics, batch, draws, axis)
    )


def member_gradients(
    model: GRUModel,
    config: TrainConfig,
    state: TrainState,
    statistics: Mapping[str, Array],
    batch: Batch,
    draws: Draws,
    axis: str | None,
) -> tuple[Any, Array]:
    """`gradient` of all members at once."""

    def of_one(params: Any, draws: Draws) -> tuple[Any, Array]:
        return gradient(model, config, params, statistics, batch, draws, axis)

    mapped = each_member(config, of_one, 0, Draws(-1, 0))  # pyright: ignore[reportArgumentType]: their axes
    return mapped(state.params, draws)


def apply_gradients(config: TrainConfig, num_steps: int, state: TrainState, gradients: Any, loss: Array) -> TrainState:
    """The state after a step of the optimizer, of all members at once."""

    def step(state: TrainState, gradients: Any, loss: Array) -> TrainState:
        updates, optimizer_state = make_optimizer(config, num_steps).update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        _, averaging = optax.ema(decay(config, num_steps)).update(params, state.averaging)
        return TrainState(params, optimizer_state, averaging, state.loss + loss)

    return each_member(config, step, 0, 0, 0)(state, gradients, loss)


def decay(config: TrainConfig, num_steps: int) -> float:
    """Of the average of the weights at each step, so that it spans the share `averaging` of all steps."""
    return 1 - 1 / max(1.0, config.averaging * num_steps)


class Ended(NamedTuple):
    """What the end of an epoch needs of the state."""

    average: Any  # of the weights over the steps so far, each older one counting less: what is evaluated and kept
    finite: Array  # () bool: whether the loss and all of the average are
    loss: Array  # () 0, that of the next epoch before its first step


def ended(config: TrainConfig, num_steps: int, state: TrainState) -> Ended:
    """An epoch that ends with this state."""
    correct = partial(optax.tree.bias_correction, decay=decay(config, num_steps))
    average = each_member(config, lambda averaging: correct(averaging.ema, count=averaging.count), 0)(state.averaging)
    finite = jnp.stack([jnp.isfinite(a).all() for a in jax.tree.leaves((state.loss, average))]).all()
    return Ended(average, finite, jnp.zeros_like(state.loss))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 8), donate_argnums=(4,))
def train_steps(
    model: GRUModel,
    config: TrainConfig,
    num_steps: int,
    boundaries: tuple[int, ...],
    state: TrainState,
    statistics: Mapping[str, Array],
    count: Array | int,
    steps: Steps,
    axis: str | None = None,
) -> tuple[TrainState, Ended]:
    """The first `count` of these steps, and the end of an epoch behind them, in one program: to start one takes a third
    of the time of a small step. Of 0 steps it is the end alone.

    It is `train_step` in a loop, with a gradient for each of the boundaries, which it cuts the rows of a step to.
    """

    def step(number: Array, state: TrainState) -> TrainState:
        bucket, batch, draws = jax.tree.map(lambda a: a[number], steps)

        def padded_to(length: int) -> tuple[Any, Array]:
            y = jax.tree.map(lambda a: a[:, :length], batch.y) if model.pooling is None else batch.y
            cut = batch._replace(x=batch.x[:, :length], y=y)
            return member_gradients(model, config, state, statistics, cut, draws, axis)

        found = jax.lax.switch(bucket, [partial(padded_to, length) for length in boundaries])
        return apply_gradients(config, num_steps, state, *found)

    state = jax.lax.fori_loop(0, count, step, state)
    return state, ended(config, num_steps, state)


@partial(jax.jit, static_argnums=0)
def forward(model: GRUModel | GRUEnsemble, variables: Mapping[str, Any], x: Array, lengths: Array) -> Any:
    """The model without dropout: x (B, T, I), lengths (B,) -> (B, output_size), without pooling (B, T, output_size); of
    several heads a dict of such."""
    outputs: Any = model.apply(variables, x, lengths=lengths)
    return outputs
