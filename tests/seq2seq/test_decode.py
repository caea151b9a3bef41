"""Greedy, sampling and beam search with a step that reads a table, against all possible sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refused

from grujax.seq2seq import beam_search, greedy, sample
from grujax.testing import assert_close

RNG = np.random.default_rng(0)
V, N, END, START = 4, 4, 2, 1
LOGITS = RNG.normal(size=(2, N, V, V, V)) * 2.0  # axes: row, step, token read before, token read, next token
STATE = {"row": jnp.arange(2), "t": jnp.zeros(2, int), "before": jnp.full(2, START)}


def step(state, token):
    """The logits depend on the token before too, which is a state that differs between beams."""
    logits = jnp.asarray(LOGITS)[state["row"], state["t"], state["before"], token]
    return state | {"t": state["t"] + 1, "before": token}, logits


def beams(state=STATE, **options):
    """Runs `beam_search` as one compiled program."""
    return jax.jit(lambda: beam_search(step, state, START, end=END, **options))()


def log_p(row, tokens):
    total = 0.0
    for t, token in enumerate(tokens):
        logits = LOGITS[row, t, *(START, START, *tokens)[t : t + 2]]
        total += logits[token] - np.log(np.exp(logits).sum())
    return total


def sequences():
    """Yields all sequences that end with END or at step N."""
    for n in range(1, N + 1):
        for tokens in itertools.product(range(V), repeat=n):
            if END not in tokens[:-1] and (tokens[-1] == END or n == N):
                yield tokens


def filled(tokens):
    return [*tokens, *[END] * (N - len(tokens))]


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_a_beam_that_holds_every_sequence_finds_what_exhaustive_search_finds(alpha):
    every = list(sequences())
    size = len(every)
    found = beams(max_length=N, beam_size=size, length_penalty=alpha)
    for row in range(2):
        scores = np.array([log_p(row, tokens) / ((5 + len(tokens)) / 6) ** alpha for tokens in every])
        order = np.argsort(-scores)
        assert_close(found.scores[row], scores[order])
        assert found.tokens[row].tolist() == [filled(every[i]) for i in order]
        assert found.lengths[row].tolist() == [len(every[i]) - (every[i][-1] == END) for i in order]


def by_hand(row, beam_size, alpha):
    """Beam search with Python lists."""
    beams = [((), 0.0)]
    for _ in range(N):
        done = [beam for beam in beams if beam[0][-1:] == (END,)]
        longer = [((*b[0], token),) for b in beams if b not in done for token in range(V)]
        beams = done + [(tokens, log_p(row, tokens)) for (tokens,) in longer]
        beams = sorted(beams, key=lambda b: -b[1] / ((5 + len(b[0])) / 6) ** alpha)[:beam_size]
    return beams


@pytest.mark.parametrize("beam_size, alpha", [(2, 1.0), (3, 0.0)])
def test_a_narrow_beam_equals_the_search_by_hand(beam_size, alpha):
    found = beams(max_length=N, beam_size=beam_size, length_penalty=alpha)
    for row in range(2):
        expected = by_hand(row, beam_size, alpha)
        assert found.tokens[row].tolist() == [filled(tokens) for tokens, _ in expected]
        assert_close(found.scores[row], [total / ((5 + len(t)) / 6) ** alpha for t, total in expected])


def test_a_beam_of_one_is_greedy_and_greedy_takes_the_most_probable():
    plain = greedy(step, STATE, START, end=END, max_length=N)
    beam = beam_search(step, STATE, START, end=END, max_length=N, beam_size=1)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 0], b), beam, plain)
    for row in range(2):
        tokens = []
        while len(tokens) < N and END not in tokens:
            tokens.append(int(LOGITS[row, len(tokens), *(START, START, *tokens)[-2:]].argmax()))
        assert plain.tokens[row].tolist() == filled(tokens)
        assert plain.lengths[row] == len(tokens) - (END in tokens)
        assert_close(plain.scores[row], log_p(row, tokens))


def test_the_loop_ends_when_every_sequence_has():
    steps = []

    def ending(state, token):
        jax.debug.callback(lambda: steps.append(1))
        return state, jnp.broadcast_to(jnp.where(jnp.arange(V) == END, 9.0, 0.0), (len(token), V))

    found = greedy(ending, jnp.zeros((3, 1)), START, end=END, max_length=50)
    jax.effects_barrier()
    assert found.lengths.tolist() == [0, 0, 0] and len(steps) == 1
    assert (found.tokens == END).all()


def test_fewer_sequences_than_beams_leave_beams_of_score_minus_infinity():
    found = beams(max_length=1, beam_size=V + 2)
    assert np.isneginf(found.scores[:, V:]).all() and np.isfinite(found.scores[:, :V]).all()


def test_the_same_key_draws_the_same_tokens():
    draw = jax.jit(lambda key: sample(step, STATE, START, end=END, max_length=N, key=key))
    first, again, other = (draw(jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.tokens != other.tokens).any()


@pytest.mark.parametrize("temperature, top_k", [(1.0, None), (0.5, None), (1.0, 2)])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(temperature, top_k):
    n_rows = 20_000
    state = {"row": jnp.zeros(n_rows, int), "t": jnp.zeros(n_rows, int), "before": jnp.full(n_rows, START)}
    options = {"temperature": temperature, "top_k": top_k, "key": jax.random.key(0)}
    found = sample(step, state, START, end=END, max_length=1, **options)
    p = np.exp(LOGITS[0, 0, START, START] / temperature)
    if top_k:
        p[p < np.sort(p)[-top_k]] = 0
    p /= p.sum()
    shares = np.bincount(np.asarray(found.tokens[:, 0]), minlength=V) / n_rows
    assert (np.abs(shares - p) < 5 * np.sqrt(p * (1 - p) / n_rows) + 1e-12).all()
    scores = {token: log_p(0, (token,)) for token in range(V)}
    assert_close(found.scores, [scores[token] for token in found.tokens[:, 0].tolist()])


def test_the_limits_of_sampling_are_greedy():
    plain, key = greedy(step, STATE, START, end=END, max_length=N), jax.random.key(0)
    for options in ({"top_k": 1}, {"temperature": 1e-6}):
        found = sample(step, STATE, START, end=END, max_length=N, key=key, **options)
        jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_of_tokens_that_are_as_probable_top_k_keeps_k():
    even = lambda state, token: (state, jnp.zeros((len(token), V)))  # noqa: E731
    found = sample(even, jnp.zeros((50, 1)), START, end=V - 1, max_length=N, key=jax.random.key(0), top_k=2)
    assert set(found.tokens.ravel().tolist()) == {0, 1}


def test_each_row_may_start_from_its_own_token():
    found = greedy(step, STATE, np.array([0, 3]), end=END, max_length=N)
    for row, start in enumerate((0, 3)):
        alone = greedy(step, STATE, start, end=END, max_length=N)
        assert found.tokens[row].tolist() == alone.tokens[row].tolist()


def test_what_cannot_be_served_is_refused():
    options = {"end": END, "max_length": N}
    with refused("end: expected a token, 0 to V - 1 = 3, found 4"):
        greedy(step, STATE, START, end=4, max_length=N)
    with refused("end: expected a token, 0 to V - 1 = 3, found 0.5"):
        greedy(step, STATE, START, end=0.5, max_length=N)
    for penalty in (np.nan, np.ones(2)):
        with refused("length_penalty: expected a finite number"):
            beam_search(step, STATE, START, beam_size=2, length_penalty=penalty, **options)
    with refused("max_length: expected a positive integer, found 0"):
        greedy(step, STATE, START, end=END, max_length=0)
    with refused("start: expected one token, or one for each of 2 rows, found shape (3,)"):
        greedy(step, STATE, np.ones(3, int), **options)
    with refused("start: expected integers, found dtype float64"):
        greedy(step, STATE, 1.0, **options)
    with refused("state: expected arrays (B, ...), found first axes [(2,), (3,)]"):
        greedy(step, STATE | {"t": jnp.zeros(3, int)}, START, **options)
    with refused("step: expected logits (B, V) with B = 2, found shape (4,)"):
        greedy(lambda state, token: (state, jnp.zeros(4)), STATE, START, **options)
    with refused("beam_size: expected a positive integer, found 0"):
        beam_search(step, STATE, START, beam_size=0, **options)
    with refused("temperature: expected a positive number, found 0.0"):
        sample(step, STATE, START, key=jax.random.key(0), temperature=0.0, **options)
    with refused("temperature: expected a positive number, found [1. 2.]"):
        sample(step, STATE, START, key=jax.random.key(0), temperature=np.array([1.0, 2.0]), **options)
    with refused("top_k: expected at most V = 4, found 5"):
        sample(step, STATE, START, key=jax.random.key(0), top_k=5, **options)
    with refused("top_k: expected a positive integer, found 0"):
        sample(step, STATE, START, key=jax.random.key(0), top_k=0, **options)


def test_no_rows_have_no_beams():
    empty = jax.tree.map(lambda a: a[:0], STATE)
    assert beams(empty, max_length=N, beam_size=2).tokens.shape == (0, 2, N)
