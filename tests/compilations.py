"""Which programs XLA compiles."""

import jax


def compiled(function):
    """The names of the programs that are compiled while `function()` runs."""
    names = []

    def listener(event, _duration, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.block_until_ready(function())
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return names


def compilations(function):
    """How many they are."""
    return len(compiled(function))
