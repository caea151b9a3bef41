"""Strict numerics for every test, and the random problem that most tests start from."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules that tests share

import numerics  # noqa: F401


@pytest.fixture
def problem():
    """`problem(n_steps=6, n_rows=4, n_features=3, hidden_size=5, seed=0)` draws x (B, T, I), h0 and four weights.

    It returns float64 NumPy arrays by name, none of them zero.
    """

    def make(n_steps=6, n_rows=4, n_features=3, hidden_size=5, seed=0):
        rng = np.random.default_rng(seed)
        gates, scale = 3 * hidden_size, hidden_size**-0.5
        return {
            "x": rng.normal(size=(n_rows, n_steps, n_features)),
            "h0": rng.normal(size=(n_rows, hidden_size)),
            "w_ih": rng.uniform(-scale, scale, (n_features, gates)),
            "w_hh": rng.uniform(-scale, scale, (hidden_size, gates)),
            "b_ih": rng.uniform(-scale, scale, gates),
            "b_hh": rng.uniform(-scale, scale, gates),
        }

    return make
