"""Seeing inside a trained GRU: what its gates do, how long its units remember, how far back gradients reach."""

from grujax.inspect.measures import Saturation, gates, gradient_norm, saturation, time_scale
from grujax.inspect.plots import plot_gradient_norm, plot_saturation, plot_time_scale

__all__ = [
    "Saturation",
    "gates",
    "gradient_norm",
    "plot_gradient_norm",
    "plot_saturation",
    "plot_time_scale",
    "saturation",
    "time_scale",
]
