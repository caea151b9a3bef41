"""Test helpers: the table of tolerances, and the contract that every kernel must pass."""

from grujax.testing.contract import CASES, Case, assert_serves
from grujax.testing.tolerances import TOLERANCES, assert_close, assert_trees_close, tolerances_used

__all__ = ["CASES", "TOLERANCES", "Case", "assert_close", "assert_serves", "assert_trees_close", "tolerances_used"]
