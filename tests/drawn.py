"""Random weights, for tests that do not depend on the initialisers of a model."""

from functools import partial

import jax
import numpy as np


def drawn(model, *args, seed=0):
    """Returns nonzero variables with the shapes that `model.init` gives, without compiling a program."""
    rng = np.random.default_rng(seed)
    shapes = _initial.eval_shape(model, *args)
    return jax.tree.map(lambda a: jax.device_put(rng.uniform(-0.6, 0.6, a.shape).astype(a.dtype)), shapes)


@partial(jax.jit, static_argnums=0)  # jit remembers the models that it has traced
def _initial(model, *args):
    return model.init(jax.random.key(0), *args)
