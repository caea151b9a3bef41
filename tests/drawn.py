"""Weights at random, where it does not matter how a model would draw its own."""

from functools import partial

import jax
import numpy as np


def drawn(model, *args, seed=0):
    """Variables of the shapes that `model.init` gives, none of them zero. No program is compiled for it."""
    rng = np.random.default_rng(seed)
    shapes = _initial.eval_shape(model, *args)
    return jax.tree.map(lambda a: jax.device_put(rng.uniform(-0.6, 0.6, a.shape).astype(a.dtype)), shapes)


@partial(jax.jit, static_argnums=0)  # which remembers the models that it has traced
def _initial(model, *args):
    return model.init(jax.random.key(0), *args)
