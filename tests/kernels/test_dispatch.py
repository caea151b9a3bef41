"""The door to the kernels: valid steps and resets against a loop, row by row; who runs, and why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close

from grujax import GRUSpec, equations
from grujax.kernels import explain, gru_sequence
from grujax.kernels.dispatch import KERNELS

T, B, H = 6, 4, 3
RNG = np.random.default_rng(0)
GATES, H0, W_HH = RNG.normal(size=(T, B, 3 * H)), RNG.normal(size=(B, H)), RNG.normal(size=(H, 3 * H)) * 0.5
B_HN, H_RESET = RNG.normal(size=H), RNG.normal(size=H)
VALID, RESET = RNG.random((T, B)) < 0.7, RNG.random((T, B)) < 0.4
VALID[:, 1], RESET[0, 0], VALID[0, 0], RESET[2, 1] = False, True, True, True


def by_rows(gates_x, h0, w_hh, b_hn, valid, reset, h_reset, reset_after):
    """One row and one step at a time, nothing shared with the code under test but the equations."""
    b_hh = np.concatenate([np.zeros(2 * H), b_hn])
    hs, h_last = np.zeros((T, B, H)), h0.copy()
    for row in range(B):
        for t in range(T):
            if valid is None or valid[t, row]:
                h = h_last[row]
                if reset is not None and reset[t, row]:
                    h = np.zeros(H) if h_reset is None else h_reset
                gates = gates_x[t, row]
                weights = (np.eye(3 * H), w_hh, np.zeros(3 * H), b_hh)
                h_last[row] = equations.step(gates, h, *weights, variant=equations.Variant(reset_after)).h
            hs[t, row] = h_last[row]
    return hs, h_last


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("implementation", [*KERNELS, None])
@pytest.mark.parametrize("masks", ["none", "valid", "reset", "both", "both and h_reset"])
def test_valid_and_reset_equal_a_loop_row_by_row(masks, implementation, reset_after):
    valid = VALID if masks in ("valid",) or "both" in masks else None
    reset = RESET if masks in ("reset",) or "both" in masks else None
    h_reset = H_RESET if "h_reset" in masks else None
    expected = by_rows(GATES, H0, W_HH, B_HN, valid, reset, h_reset, reset_after)
    gates = GATES if valid is None else np.where(valid[..., None], GATES, np.nan)
    given = jax.tree.map(jnp.asarray, {"valid": valid, "reset": reset, "h_reset": h_reset})
    found = gru_sequence(
        *map(jnp.asarray, (gates, H0, W_HH, B_HN)), **given, spec=GRUSpec(reset_after), implementation=implementation
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_explain_says_what_runs_and_why():
    assert explain().implementation == "fused" and "default" in explain().reason
    named = explain(implementation="scan")
    assert (named.implementation, named.reason) == ("scan", "named by the caller")
    assert str(named).startswith("scan: ") and "lax.scan" in str(named) and named.reason in str(named)


def test_the_state_is_float32_at_least():
    half = [jnp.asarray(a, jnp.bfloat16) for a in (GATES, H0, W_HH, B_HN)]
    assert {a.dtype.name for a in gru_sequence(*half)} == {"float32"}
