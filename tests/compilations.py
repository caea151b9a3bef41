"""Records which programs XLA compiles."""

import jax


def compiled(function):
    """Returns the names of the programs that are compiled while `function()` runs."""
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
    """Returns how many programs are compiled while `function()` runs."""
    return len(compiled(function))
