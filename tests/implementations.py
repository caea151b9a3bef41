"""The implementations that run on this machine: none for accelerators, and the native one only if it is built."""

import jax
import jax.numpy as jnp

from grujax import GRUSpec
from grujax.kernels.table import KERNELS, Asked

PLAIN = Asked(GRUSpec(), jnp.float32, (1, 1, 1), frozenset())
HERE = [
    name
    for name, kernel in KERNELS.items()
    if kernel.platform in (None, jax.default_backend()) and kernel.refuses(PLAIN) is None
]
