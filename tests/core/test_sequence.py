"""`gru` against the oracle: padding, directions, sizes, batch axes, dtypes, chunks, vmap and compilations."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from implementations import HERE
from pairs import pairwise

from grujax import GRUWeights, equations, gru
from grujax.testing import assert_close

NAMES = ["x", "h0", "w_ih", "w_hh", "b_ih", "b_hh"]
LENGTHS = np.array([6, 0, 2, 5])


def run(given, **options):
    return gru(given["x"], GRUWeights(*(given[n] for n in NAMES[2:])), given["h0"], **options)


def as_jax(given, dtype="float64"):
    return {name: jax.device_put(np.asarray(a).astype(dtype)) for name, a in given.items()}


def oracle(given, dhs, dh_last, **options):
    args = [given["x"].swapaxes(0, 1), *(given[n] for n in NAMES[1:])]
    options["variant"] = equations.Variant(options.pop("reset_after", True))
    hs, h_last, _ = equations.sequence(*args, **options)
    gradients = equations.sequence_backward(*args, dhs=dhs.swapaxes(0, 1), dh_last=dh_last, **options)._asdict()
    return hs.swapaxes(0, 1), h_last, gradients | {"x": gradients["x"].swapaxes(0, 1)}


def poisoned(x, lengths):
    x = x.copy()
    for row, (length, poison) in enumerate(zip(lengths, [0, np.nan, np.inf, 1e38], strict=True)):
        x[row, length:] = poison
    return x


RUNS = pairwise(
    how=[*((name, "float64") for name in HERE), ("xla", "float32")],
    reset_after=[True, False],
    reverse=[False, True],
    lengths=[None, LENGTHS],
)


@pytest.mark.parametrize("case", RUNS, ids=lambda case: "-".join(map(str, case.values())))
def test_values_and_gradients_equal_the_oracle(problem, case):
    (implementation, dtype), lengths = case["how"], case["lengths"]
    options = {name: case[name] for name in ("lengths", "reverse", "reset_after")}
    given = problem()
    rng = np.random.default_rng(1)
    dhs, dh_last = rng.normal(size=(4, 6, 5)), rng.normal(size=(4, 5))
    expected_hs, expected_last, expected = oracle(given, dhs, dh_last, **options)
    if lengths is not None:
        given["x"] = poisoned(given["x"], lengths)

    def loss(given):
        hs, h_last = run(given, implementation=implementation, **options)
        weighed = (hs * jnp.asarray(dhs, dtype)).sum() + (h_last * jnp.asarray(dh_last, dtype)).sum()
        return weighed, (hs, h_last)

    (_, (hs, h_last)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(as_jax(given, dtype))
    assert_close(hs, expected_hs)
    assert_close(h_last, expected_last)
    for name in NAMES:
        assert_close(gradients[name], expected[name], "gradient", name=name)
    if lengths is not None:
        padding = np.arange(6) >= lengths[:, None]
        assert not np.asarray(hs)[padding].any() and not np.asarray(gradients["x"])[padding].any()
        np.testing.assert_array_equal(h_last[1], given["h0"][1].astype(dtype))


@pytest.mark.parametrize("sizes", [(0, 4, 3, 5), (6, 0, 3, 5), (1, 1, 1, 1), (1, 4, 3, 1), (5, 3, 7, 13)])
def test_sizes_at_the_edge(problem, sizes):
    given = problem(*sizes)

    def loss(given):
        results = run(given)
        return sum(a.sum() for a in results), results

    gradients, (hs, h_last) = jax.jit(jax.grad(loss, has_aux=True))(as_jax(given))
    n_steps, n_rows, _, hidden = sizes
    expected = oracle(given, np.ones((n_rows, n_steps, hidden)), np.ones((n_rows, hidden)))
    assert_close(hs, expected[0])
    assert_close(h_last, expected[1])
    for name in NAMES:
        assert_close(gradients[name], expected[2][name], "gradient", name=name)


def test_batch_axes_may_be_none_or_two(problem):
    given = problem()
    reverse = lambda given, lengths: jax.device_get(jitted(as_jax(given), lengths))  # noqa: E731
    jitted = jax.jit(lambda given, lengths: run(given, lengths=lengths, reverse=True))
    hs, h_last = reverse(given, LENGTHS)
    two = given | {"x": given["x"].reshape(2, 2, 6, 3), "h0": given["h0"].reshape(2, 2, 5)}
    hs_two, h_two = reverse(two, LENGTHS.reshape(2, 2))
    assert_close(hs_two.reshape(4, 6, 5), hs)
    assert_close(h_two.reshape(4, 5), h_last)
    hs_one, h_one = reverse(given | {"x": given["x"][2], "h0": given["h0"][2]}, np.int32(2))
    assert_close(hs_one, hs[2])
    assert_close(h_one, h_last[2])


@cache
def summed(implementation):
    def loss(given):
        hs, h_last = run(given, lengths=LENGTHS, implementation=implementation)
        return hs.sum() + h_last.astype(hs.dtype).sum(), (hs, h_last)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [(name, dtype) for name in HERE for dtype in ("bfloat16", "float16") if (name, dtype) != ("native", "float16")],
)
def test_half_precision_stays_near_float32(problem, dtype, implementation):
    given = as_jax(as_jax(problem(), dtype), "float32")  # both runs get the values that half precision stores

    both = summed(implementation)  # the float32 run is compiled once for both dtypes
    ((_, wide), expected), ((_, half), gradients) = both(given), both(as_jax(given, dtype))
    assert [a.dtype for a in half] == [jnp.float32, jnp.dtype(dtype)]  # h_last has the dtype of h0
    for a, b in zip(half, wide, strict=True):
        assert_close(a, b, dtype=dtype)
    for name in NAMES:
        assert gradients[name].dtype == dtype
        assert_close(gradients[name], expected[name], "gradient", name=name)


def test_biases_and_h0_may_be_left_out(problem):
    given = problem()
    zeros = given | {name: np.zeros_like(given[name]) for name in ("b_ih", "b_hh", "h0")}
    hs, h_last = gru(jnp.asarray(given["x"]), GRUWeights(jnp.asarray(given["w_ih"]), jnp.asarray(given["w_hh"])))
    expected = oracle(zeros, np.zeros((4, 6, 5)), np.zeros((4, 5)))
    assert_close(hs, expected[0])
    assert_close(h_last, expected[1])


def test_a_run_in_chunks_equals_the_whole(problem):
    given = as_jax(problem())
    whole, whole_last = run(given, lengths=LENGTHS)
    h, parts = given["h0"], []
    for start in (0, 2, 4):
        chunk = given | {"x": given["x"][:, start : start + 2], "h0": h}
        hs, h = run(chunk, lengths=np.clip(LENGTHS - start, 0, 2))
        parts.append(hs)
    assert_close(jnp.concatenate(parts, 1), whole)
    assert_close(h, whole_last)
    np.testing.assert_array_equal(h[1], given["h0"][1])


@pytest.mark.parametrize("implementation", HERE)
def test_vmap_over_weights_equals_a_loop(problem, implementation):
    members = [problem(seed=seed) for seed in range(3)]
    stacked, members = as_jax(jax.tree.map(lambda *a: np.stack(a), *members)), [as_jax(member) for member in members]

    @jax.jit
    def gradients(given):
        return jax.grad(lambda given: sum(a.sum() for a in run(given, implementation=implementation)))(given)

    together = jax.device_get(jax.jit(jax.vmap(gradients))(stacked))
    for i, member in enumerate(members):
        for name, expected in gradients(member).items():
            assert_close(together[name][i], expected, "gradient", name=name)


def test_the_same_shapes_compile_once_and_others_again(problem):
    given = as_jax(problem(7, 3, 2, 11))
    lengths = jax.device_put(np.array([7, 1, 0]))
    assert compilations(lambda: run(given, lengths=lengths)) > 0
    other = jax.tree.map(lambda a: a + 1, given)
    assert compilations(lambda: run(other, lengths=jnp.flip(lengths))) <= compilations(lambda: jnp.flip(lengths)) + 1
    assert compilations(lambda: run(other, lengths=lengths)) == 0
    shorter = other | {"x": jnp.asarray(np.ones((3, 8, 2)))}
    assert compilations(lambda: run(shorter, lengths=lengths)) > 0
