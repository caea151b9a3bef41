"""A model run by one program: an eager `apply` compiles ten for new shapes."""

import functools

import jax


@functools.partial(jax.jit, static_argnums=0, static_argnames=("return_state",))
def applied(model, variables, *given, **named):
    return model.apply(variables, *given, **named)
