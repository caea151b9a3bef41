"""Importing this module switches on strict numerics on the CPU: float64, no implicit promotion of dtypes and ranks."""

import contextlib

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@contextlib.contextmanager
def of_a_user():
    """Sets JAX's default numerics, as a user has them, inside the context."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
