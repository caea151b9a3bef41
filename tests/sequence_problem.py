"""The random problem of the tests on sequences: sizes, flags, parameters, and values in the padding."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import WEIGHTS

from grujax import GRU

B, T, I, H, L = 4, 7, 3, 5, 2
KEY = jax.random.key(0)
LEARNED = {"initial_state": "learned", "param_dtype": jnp.float64}
BOTH = {"bidirectional": True, **LEARNED}
DRAWN = {"deadline": None, "derandomize": True}
SEEDS = st.integers(0, 2**32 - 1)
FLAGS = arrays(np.bool_, (B, T), fill=st.nothing())  # each flag is drawn separately


@st.composite
def valid_steps(draw, holes=True):
    """Draws (B, T) flags: one row has all steps, one has none, the others have some, with or without holes."""
    valid = draw(FLAGS) if holes else np.arange(T) < draw(arrays(np.int64, (B, 1), elements=st.integers(0, T)))
    full = draw(st.integers(0, B - 1))
    valid[full], valid[full - 1] = True, False
    return valid


def said(valid, by):
    """Returns `valid` as the argument `mask`, or as `lengths` if it has no holes."""
    return jax.device_put(valid if by == "mask" else valid.sum(1))


def poisoned(x, valid):
    """Returns x with NaN, ±inf and 1e38 at the steps that are not valid: they must not affect any result."""
    return np.where(valid[..., None], x, np.resize([np.nan, np.inf, 1e38, -np.inf], x.shape))


def random_weights(rng):
    shapes = [(I, 3 * H), (H, 3 * H), (3 * H,), (3 * H,)]
    return {name: rng.uniform(-0.6, 0.6, shape) for name, shape in zip(WEIGHTS, shapes, strict=True)}


SHAPES = {}


def random_params(model, rng, input_size=I):
    """Returns nonzero parameters with the shapes that the model declares."""
    key = repr(model), input_size
    if key not in SHAPES:
        SHAPES[key] = jax.eval_shape(model.init, KEY, jnp.zeros((1, input_size)))["params"]
    return jax.tree.map(lambda a: rng.uniform(-0.6, 0.6, a.shape), SHAPES[key])


def as_jax(tree):
    return jax.device_put(tree)  # compiles nothing


@cache
def compiled_layers(by, h0_given, hidden_size=H, **options):
    """Compiles (params, x, h0, valid, resets, d_output, d_last) -> (gradients of params, x, h0), (output, h_last)."""
    model = GRU(hidden_size, num_layers=L, bidirectional=True, **LEARNED, **options)

    def loss(params, x, h0, valid, resets, d_output, d_last):
        steer = {by: valid, "resets": resets}
        output, h_last = model.apply({"params": params}, x, h0 if h0_given else None, **steer)
        return (output * d_output).sum() + (h_last * d_last).sum(), (output, h_last)

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def random_layers(rng, input_size=I, hidden_size=H, n_rows=B):
    """Returns params and h0 of two bidirectional layers."""
    model = GRU(hidden_size, num_layers=L, bidirectional=True, **LEARNED)
    return random_params(model, rng, input_size), rng.normal(size=(2 * L, n_rows, hidden_size))


EDGES = {"no steps": (4, 0, 3, 5), "no rows": (0, 7, 3, 5), "one unit": (4, 7, 3, 1)}
"""Rows, steps, features, hidden units."""


RNG = np.random.default_rng(1)
X, H0 = RNG.normal(size=(B, T, I)), RNG.normal(size=(2 * L, B, H))
RESETS, VALID = RNG.random((B, T)) < 0.4, RNG.random((B, T)) < 0.7
VALID[1], RESETS[0, :2], VALID[0, :2], VALID[3] = False, (False, True), True, np.arange(T) != 2
LENGTHS = np.array([5, 0, 7, 6])
SEGMENTS = np.arange(B)[:, None] + np.where(np.arange(T) < 4, 0, B)  # two segments in each row
