"""The implementations that run here: where its library is not built, the native one does not."""

import jax.numpy as jnp

from grujax import GRUSpec
from grujax.kernels.table import KERNELS

HERE = [name for name, kernel in KERNELS.items() if kernel.refuses(GRUSpec(), jnp.float32) is None]
