"""How often XLA compiles."""

import jax


def compilations(function):
    """The number of programs that are compiled while `function()` runs."""
    events = []
    listener = lambda event, _duration, **_: events.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.block_until_ready(function())
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return sum(event.endswith("backend_compile_duration") for event in events)
