"""GRUs in the interfaces of other libraries."""

from grujax.estimators.forecaster import GRUForecaster

__all__ = ["GRUForecaster"]
