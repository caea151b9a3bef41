"""Analysis of a trained GRU: its gates, the memory of its units, the reach of gradients, and its fixed points."""

from grujax.inspect.dynamics import (
    FixedPoints,
    PrincipalComponents,
    fixed_points,
    principal_components,
    states,
    time_constants,
)
from grujax.inspect.measures import Saturation, gates, gradient_norm, saturation, time_scale
from grujax.inspect.plots import (
    plot_eigenvalues,
    plot_gradient_norm,
    plot_saturation,
    plot_states,
    plot_time_scale,
)

__all__ = [
    "FixedPoints",
    "PrincipalComponents",
    "Saturation",
    "fixed_points",
    "gates",
    "gradient_norm",
    "plot_eigenvalues",
    "plot_gradient_norm",
    "plot_saturation",
    "plot_states",
    "plot_time_scale",
    "principal_components",
    "saturation",
    "states",
    "time_constants",
    "time_scale",
]
