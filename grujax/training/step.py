"""The loss, the optimizer and the training step, as functions that JAX compiles."""

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
    """The state that one training step passes to the next."""

    params: Any
    optimizer: optax.OptState
    averaging: Any  # optax.EmaState
    loss: Array  # the sum over the rows since the start of the epoch


class Draws(NamedTuple):
    """The random draws of a step on the host. They depend only on the seed and the number of the step."""

    share: np.ndarray  # (B,) float32, or (B, N) for N members: how much of each row `mix` keeps
    seed: np.ndarray  # () uint32, or (N,) for N members: seeds the draws on the device


class Steps(NamedTuple):
    """The inputs of S consecutive steps: each array has a leading axis of size S."""

    bucket: np.ndarray  # (S,) int32: the index of the boundary that the rows of a step are padded to
    batch: Batch  # padded to the last of the boundaries
    draws: Draws


def make_optimizer(config: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns AdamW with clipping by global norm; the learning rate rises linearly, then falls to zero along a cosine.

    With `accumulate=N` it updates the weights at every Nth step, by the mean gradient of N steps.
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
    """Maps `function` over the members of an ensemble, along `axes` of its arguments; for one model it is unchanged."""
    return function if config.members == 1 else jax.vmap(function, in_axes=axes)


@partial(jax.jit, static_argnums=(0, 1))
def new_parameters(model: Any, channels: int, key: Array) -> Any:
    """Returns the initial parameters. Compiled as one program, where each initialiser would compile its own."""
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
    """Returns the loss of each row, (B,): cross-entropy of logits (B, K) and integer classes y (B,), or mean squared
    error of outputs (B, K) and float targets y (B, K) or, for K = 1, (B,), divided by the variance of the training
    targets. With outputs and y for each step the loss is (B, T), arbitrary at steps without a label or target.

    With Q `quantiles` the outputs are (..., K*Q), and the loss is the mean over them of the pinball loss
    max(q e, (q - 1) e) with e = y - output, divided by the standard deviation."""
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
    """Returns (B, T) booleans: the steps within `lengths` with a label of 0 or more, or a target that is not NaN."""
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
    """Returns the mean loss of a batch whose rows `mix` mixed, and the mean times the number of rows.

    The mean is over the rows or, with a label or target for each step, over the steps within `lengths` that have one.
    A row's loss against its own y has the weight `share` times the row's weight, its loss against the partner's y the
    weight 1 - `share` times the partner's weight. Their sum is divided by the number of rows or steps, not by the sum
    of their weights: these have the mean 1 over all rows, not over a batch.
    """
    losses = partial(
        row_losses, statistics=statistics, label_smoothing=config.label_smoothing, quantiles=config.quantiles
    )
    rows = jnp.sum(weight > 0)
    if outputs.ndim == 2:
        of_row, of_partner = losses(outputs, y), losses(outputs, y[partner])
        total = jnp.sum(_between(share, of_row * weight, of_partner * weight[partner]))
        return total / rows, total
    total = count = jnp.zeros((), outputs.dtype)
    for target, part, counts in ((y, share, weight), (y[partner], 1 - share, weight[partner])):
        known = labelled(target, lengths)
        filled = jnp.where(known if target.ndim == 2 else known[..., None], target, 0)  # NaN times 0 is NaN
        total += jnp.sum(losses(outputs, filled) * jnp.where(known, (part * counts)[:, None], 0))
        count += jnp.sum(jnp.where(known, (part * (counts > 0))[:, None], 0))
    mean = total / jnp.where(count > 0, count, 1)
    return mean, mean * rows


def disturb(key: Array, x: Array, std: Array, config: TrainConfig) -> Array:
    """Returns x (B, T, I) with normal noise added: `input_noise` standard deviations `std` (I,) at every step, and
    `input_offset` standard deviations that are the same at all steps of a sequence, as another microphone would add."""
    each_step, each_row = jax.random.split(key)
    noise = config.input_noise * drawn(lambda flat: jax.random.normal(each_step, flat, x.dtype), x.shape)
    rows = x.shape[0], 1, x.shape[2]
    offset = config.input_offset * drawn(lambda flat: jax.random.normal(each_row, flat, x.dtype), rows)
    return x + (noise + offset) * std[None, None]


def draw(config: TrainConfig, step: int) -> Draws:
    """Returns the draws of a step: its seed, and for each row max(s, 1 − s) with s drawn from Beta(mixup, mixup).

    NumPy draws them, because XLA takes nearly half as long to compile that sampler as to compile the rest of the step.
    """
    rng, members = np.random.default_rng((config.seed, step)), () if config.members == 1 else (config.members,)
    shape = (config.batch_size, *members)
    share = rng.beta(config.mixup, config.mixup, shape) if config.mixup else np.ones(shape)
    return Draws(
        np.maximum(share, 1 - share).astype(np.float32), rng.integers(2**32, size=members or None, dtype=np.uint32)
    )


def mix(share: Array, x: Array, lengths: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    """Mixes each row with the row before it, both cut to the shorter one: mixup (Zhang et al. 2018, arXiv 1710.09412).

        x = share x + (1 - share) x[partner]

    Takes share (B,), x (B, T, I), lengths (B,) and weight (B,), which is 0 for filler. Returns share, set to 1 where a
    row or its partner is filler, x, lengths and partner (B,).
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
    """Returns the gradient of the weighted mean loss of a batch with disturbed and mixed rows, and the summed loss.

    With several heads it is the gradient of their summed losses. axis: the axis of the mesh that the rows are split
    over."""
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
            output, of_targets = outputs[name].astype(jnp.float32), of_head(statistics, name)
            losses = mixed_loss(config, output, target, of_targets, lengths, share, partner, weight[name])
            mean, total = mean + losses[0], total + losses[1]
        return mean, total

    return jax.grad(loss, has_aux=True)(params)


def by_rows(model: GRUModel, variables: Any, x: Array, lengths: Array, key: Array, axis: str | None) -> Any:
    """Calls the model in training mode. Each device runs its own rows: the mesh axis is Explicit during the call.

    Under an Auto axis XLA would split the program and run the plain loop instead of a kernel.
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
    """Takes one step of all members, and adds the weighted losses of the batch's rows to the loss of the state.

    axis: the axis of the current mesh that the rows are split over; None on one device.

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
    """Returns what `gradient` returns, for all members."""

    def of_member(params: Any, draws: Draws) -> tuple[Any, Array]:
        return gradient(model, config, params, statistics, batch, draws, axis)

    mapped = each_member(config, of_member, 0, Draws(-1, 0))  # pyright: ignore[reportArgumentType]: their axes
    return mapped(state.params, draws)


def apply_gradients(config: TrainConfig, num_steps: int, state: TrainState, gradients: Any, loss: Array) -> TrainState:
    """Returns the state after a step of the optimizer, for all members."""

    def step(state: TrainState, gradients: Any, loss: Array) -> TrainState:
        updates, optimizer_state = make_optimizer(config, num_steps).update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        _, averaging = optax.ema(decay(config, num_steps)).update(params, state.averaging)
        return TrainState(params, optimizer_state, averaging, state.loss + loss)

    return each_member(config, step, 0, 0, 0)(state, gradients, loss)


def decay(config: TrainConfig, num_steps: int) -> float:
    """The decay of the moving average of the weights, chosen so that it spans the share `averaging` of all steps."""
    return 1 - 1 / max(1.0, config.averaging * num_steps)


class Ended(NamedTuple):
    """The summary of a state at the end of an epoch."""

    average: Any  # the moving average of the weights, which is evaluated and kept
    finite: Array  # () bool: whether the loss and the average are finite
    loss: Array  # () 0: the loss at the start of the next epoch


def ended(config: TrainConfig, num_steps: int, state: TrainState) -> Ended:
    """Summarises the end of an epoch: the averaged weights, whether they and the loss are finite, and a loss of 0."""
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
    """Takes the first `count` steps of `steps`, and summarises the end of an epoch after them; `count` may be 0.

    All is one program, because a launch takes a third of the time of a small step. It is `train_step` in a loop, with a
    branch for each boundary, which cuts the rows of a step to that length.
    """

    def step(number: Array, state: TrainState) -> TrainState:
        bucket, batch, draws = jax.tree.map(lambda a: a[number], steps)

        def padded_to(length: int) -> tuple[Any, Array]:
            y = jax.tree.map(lambda a: a[:, :length], batch.y) if model.pooling is None else batch.y
            cut = batch._replace(x=batch.x[:, :length], y=y)
            return member_gradients(model, config, state, statistics, cut, draws, axis)

        result = jax.lax.switch(bucket, [partial(padded_to, length) for length in boundaries])
        return apply_gradients(config, num_steps, state, *result)

    state = jax.lax.fori_loop(0, count, step, state)
    return state, ended(config, num_steps, state)


@partial(jax.jit, static_argnums=0)
def forward(model: GRUModel | GRUEnsemble, variables: Mapping[str, Any], x: Array, lengths: Array) -> Any:
    """Calls the model without dropout: x (B, T, I), lengths (B,) -> (B, output_size), without pooling
    (B, T, output_size); with several heads a dict of such outputs."""
    outputs: Any = model.apply(variables, x, lengths=lengths)
    return outputs
