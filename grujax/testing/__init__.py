"""How equal is equal: the tolerance table, and the comparison that tests, benchmarks and conversions share."""

from grujax.testing.tolerances import TOLERANCES, assert_close, assert_trees_close, tolerances_used

__all__ = ["TOLERANCES", "assert_close", "assert_trees_close", "tolerances_used"]
