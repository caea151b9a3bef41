"""The model against a NumPy loop over rows and steps; Linen and NNX; masks; decoding against teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from flax import nnx
from refusals import refused

from grujax import equations
from grujax.seq2seq import CONTEXTS, Seq2Seq, beam_search, greedy
from grujax.seq2seq.nnx import Seq2Seq as NNXSeq2Seq
from grujax.testing import assert_close

RNG = np.random.default_rng(0)
B, S, T, H, E, VS, VT, START, END = 3, 5, 4, 6, 3, 7, 5, 1, 2
SOURCE, TARGET = RNG.integers(0, VS, (B, S)), RNG.integers(0, VT, (B, T))
N_SOURCE, N_TARGET = np.array([5, 2, 3]), np.array([4, 3, 1])
LENGTHS = {"source_lengths": N_SOURCE, "target_lengths": N_TARGET}
SIZES = {"hidden_size": H, "source_vocabulary": VS, "target_vocabulary": VT, "embedding_size": E}
BOTH = {"bidirectional": True, "merge": "sum"}
CASES = [*({"context": c} for c in CONTEXTS), {"context": "bahdanau", "bidirectional": True, "num_layers": 2}]
CASES += [{"context": "luong", **BOTH}, {"context": "cho", "num_layers": 2, "reset_after": False}]


def slow(name, cases, *quick):
    """Parametrizes with `cases`; all but those at the indices `quick` are marked slow."""
    marks = [() if i in quick else pytest.mark.slow for i in range(len(cases))]
    return pytest.mark.parametrize(name, [pytest.param(c, marks=m) for c, m in zip(cases, marks, strict=True)], ids=str)


def made(**options):
    model = Seq2Seq(**SIZES, param_dtype=jnp.float64, **options)
    return model, drawn(model, SOURCE, TARGET)


def made_nnx(params, **options):
    """Returns the NNX model with these weights."""
    module = nnx.eval_shape(lambda: NNXSeq2Seq(**SIZES, param_dtype=jnp.float64, **options, rngs=nnx.Rngs(0)))
    own = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    assert own == jax.tree.map(jnp.shape, params)
    nnx.update(module, params)
    return module


def test_a_call_names_our_word():
    model, variables = made()
    module = made_nnx(variables["params"])
    of_linen = lambda **word: model.init(jax.random.key(0), SOURCE, TARGET, **word)  # noqa: E731
    for call in (of_linen, lambda **word: module(SOURCE, TARGET, **word)):
        with pytest.raises(TypeError, match=r"^Seq2Seq takes no source_length= here: write source_lengths=\."):
            call(source_length=N_SOURCE)
        with pytest.raises(TypeError, match="takes no training= here: write deterministic=not training in the call"):
            call(training=True)


def affine(params, x):
    return x @ params["kernel"] + params["bias"]


def gru(params, xs, states, reset_after, backward=False):
    """Runs one row through one direction of one layer: xs (T, I) -> (T, H), the last state."""
    h, hs = states, np.zeros((len(xs), H))
    weights = [params[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    for t in reversed(range(len(xs))) if backward else range(len(xs)):
        h = equations.step(xs[t][None], h[None], *weights, variant=equations.Variant(reset_after)).h[0]
        hs[t] = h
    return hs, h


def oracle(model, params, source, target):
    """Returns the logits (T, V) and the attention weights (T, S) of one row without padding."""
    layers, after = model.num_layers, model.reset_after
    h, last = params["source_embedding"][source], []
    for k in range(layers):
        ways = [f"l{k}", f"l{k}_reverse"] if model.bidirectional else [f"l{k}"]
        runs = [gru(params["encoder"][w], h, np.zeros(H), after, w.endswith("reverse")) for w in ways]
        h = sum(hs for hs, _ in runs) if model.merge == "sum" else np.concatenate([hs for hs, _ in runs], -1)
        last.append(np.concatenate([state for _, state in runs]))
    top, context = last[-1], model.context
    summary = np.tanh(affine(params["summary"], top)) if context == "cho" else top
    s = np.tanh(affine(params["start"], summary)).reshape(layers, H) if "start" in params else np.stack(last)
    logits, alignment = [], []
    for token in target:
        e = params["target_embedding"][token]
        c = summary if context == "cho" else None
        if context == "bahdanau":
            w = params["attention"]
            scores = np.array([w["score"] @ np.tanh(w["query"].T @ s[-1] + w["key"].T @ h_s) for h_s in h])
            a = np.exp(scores) / np.exp(scores).sum()
            c = a @ h
        x = e if c is None else np.concatenate([e, c])
        for k in range(layers):
            s[k] = gru(params["decoder"][f"l{k}"], x[None], s[k], after)[1]
            x = s[k]
        read = x
        if context == "luong":
            a = np.exp(h @ x) / np.exp(h @ x).sum()
            read = np.tanh(affine(params["readout"], np.concatenate([a @ h, x])))
        elif context is not None:
            read = affine(params["readout"], np.concatenate([e, x, c])).reshape(H, 2).max(-1)
        logits.append(affine(params["logits"], read))
        alignment.append(a if context in ("bahdanau", "luong") else np.zeros(len(source)))
    return np.array(logits), np.array(alignment)


@slow("options", CASES, 0, 4, 5, 6)
def test_both_faces_equal_the_oracle_and_each_other(options):
    model, variables = made(**options)
    call = lambda v, method: model.apply(v, SOURCE, TARGET, **LENGTHS, method=method)  # noqa: E731
    logits, weights = jax.jit(lambda v: [call(v, method) for method in ("__call__", "align")])(variables)
    params = jax.tree.map(np.asarray, variables["params"])
    expected, expected_weights = np.zeros((B, T, VT)), np.zeros((B, T, S))
    for row, (n, t) in enumerate(zip(N_SOURCE, N_TARGET, strict=True)):
        expected[row, :t], alignment = oracle(model, params, SOURCE[row, :n], TARGET[row, :t])
        expected_weights[row, :t, :n] = alignment
    assert_close(logits, expected)
    if options["context"] in ("bahdanau", "luong"):
        within = np.arange(T) < N_TARGET[:, None]
        assert_close(np.where(within[..., None], weights, 0), expected_weights)
    else:
        assert weights is None
    module = made_nnx(variables["params"], **options)
    found = nnx.jit(lambda module: module(SOURCE, TARGET, **LENGTHS))(module)
    np.testing.assert_array_equal(found, logits)


@slow("context", CONTEXTS, 1, 2)
def test_decoding_step_by_step_equals_teacher_forcing(context):
    model, variables = made(context=context, num_layers=2)

    @jax.jit
    def both(variables):
        memory, state = model.apply(variables, SOURCE, source_lengths=N_SOURCE, method="encode")
        steps = []
        for t in range(T):
            state, logits = model.apply(variables, memory, state, jnp.asarray(TARGET[:, t]), method="step")
            steps.append(logits)
        return jnp.stack(steps, 1), model.apply(variables, SOURCE, TARGET, source_lengths=N_SOURCE)

    assert_close(*both(variables))


@slow("context", CONTEXTS, 2)
def test_greedy_and_beams_score_what_teacher_forcing_scores(context):
    """In one compiled loop, with Linen and NNX; every beam reads the source."""
    model, variables = made(context=context)
    encode = lambda: model.apply(variables, SOURCE, source_lengths=N_SOURCE, method="encode")  # noqa: E731
    memory, state = jax.jit(encode)()
    module = made_nnx(variables["params"], context=context)
    options = {"end": END, "max_length": T}

    @jax.jit
    def linen(memory, state):
        step = lambda state, token: model.apply(variables, memory, state, token, method="step")  # noqa: E731
        return greedy(step, state, START, **options), beam_search(step, state, START, beam_size=3, **options)

    plain, beams = linen(memory, state)
    forced = jax.jit(lambda read: jax.nn.log_softmax(model.apply(variables, SOURCE, read, source_lengths=N_SOURCE)))
    step = lambda state, token: module.step(memory, state, token)  # noqa: E731
    own = jax.jit(lambda: greedy(step, state, START, **options))()
    np.testing.assert_array_equal(own.tokens, plain.tokens)
    assert_close(own.scores, plain.scores)
    for rank in range(3):
        tokens = beams.tokens[:, rank]
        read = np.concatenate([np.full((B, 1), START), tokens[:, :-1]], 1)
        of_tokens = np.take_along_axis(np.asarray(forced(read)), np.asarray(tokens)[..., None], -1)[..., 0]
        counted = np.arange(T) <= np.asarray(beams.lengths)[:, rank, None]
        assert_close(beams.scores[:, rank], np.where(counted, of_tokens, 0).sum(1))
    assert (np.diff(beams.scores) <= 0).all()


@slow("options", CASES[:4], 2, 3)
def test_what_stands_in_the_padding_changes_no_bit_and_no_gradient(options):
    model, variables = made(**options)
    filled_source = np.where(np.arange(S) < N_SOURCE[:, None], SOURCE, -999)
    filled_target = np.where(np.arange(T) < N_TARGET[:, None], TARGET, 10_000)

    @jax.jit
    def run(variables, source, target):
        loss = lambda v: (model.apply(v, source, target, **LENGTHS) ** 2).sum()  # noqa: E731
        return model.apply(variables, source, target, **LENGTHS), jax.grad(loss)(variables)

    logits, gradients = run(variables, filled_source, filled_target)
    expected = run(variables, SOURCE, TARGET)
    jax.tree.map(np.testing.assert_array_equal, (logits, gradients), expected)
    assert not np.asarray(logits)[np.arange(T) >= N_TARGET[:, None]].any()
    assert all(np.isfinite(g).all() and np.asarray(g).any() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("context", ["bahdanau", "luong"])
def test_an_empty_source_gives_finite_logits_and_gradients(context):
    model, variables = made(context=context)
    lengths = np.array([0, 2, 5])
    loss = lambda v: (model.apply(v, SOURCE, TARGET, source_lengths=lengths) ** 2).sum()  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@slow("context", CONTEXTS, 3)
def test_scheduled_sampling_goes_from_the_target_to_what_the_model_draws(context):
    model, variables = made(context=context)
    rngs = {"sampling": jax.random.key(3)}
    forced = jax.jit(lambda: model.apply(variables, SOURCE, TARGET, **LENGTHS))()
    sampled = jax.jit(lambda rate, y: model.apply(variables, SOURCE, y, **LENGTHS, sampling_rate=rate, rngs=rngs))
    never, half, always = (sampled(rate, TARGET) for rate in (0.0, 0.5, 1.0))
    assert_close(never, forced)
    assert_close(always[:, 0], forced[:, 0])  # the start token is never sampled
    assert (half != never).any() and (half != always).any()
    other = np.concatenate([TARGET[:, :1], (TARGET[:, 1:] + 1) % VT], 1)
    np.testing.assert_array_equal(sampled(1.0, other), always)  # only the start token of the target is read


def test_nnx_draws_and_drops_from_the_streams_that_it_is_given():
    module = NNXSeq2Seq(**SIZES, dropout=0.5, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda m, **options: m(SOURCE, TARGET, **options), static_argnames="deterministic")

    def draws(**options):
        return run(module, rngs=nnx.Rngs(sampling=1, dropout=2), **options)

    quiet = draws(deterministic=True)
    assert (draws() != quiet).any() and (draws(deterministic=True, sampling_rate=1.0) != quiet).any()
    np.testing.assert_array_equal(draws(), draws())
    half = lambda: draws(deterministic=True, sampling_rate=0.5)  # noqa: E731
    np.testing.assert_array_equal(half(), half())
    module.eval()
    np.testing.assert_array_equal(draws(), quiet)
    with refused('rngs: expected an nnx.Rngs with a stream "sampling", found None'):
        module(SOURCE, TARGET, sampling_rate=0.5)


def test_a_rate_outside_0_to_1_and_a_key_that_is_missing_are_refused():
    model, variables = made(dropout=0.5)

    def call(rngs, **options):
        return model.apply(variables, SOURCE, TARGET, rngs=rngs, **options)

    keys = {"sampling": jax.random.key(0)}
    for rate in (2.0, -0.1, np.nan):
        with refused("sampling_rate: expected 0 to 1, found"):
            call(keys, sampling_rate=rate)
        with refused("sampling_rate: expected 0 to 1, found"):
            jax.jit(lambda rate=jnp.float32(rate): call(keys, sampling_rate=rate)).lower()
    with refused("sampling_rate: expected shape ()"):
        call(keys, sampling_rate=np.full(B, 0.5))
    for stream, options in {"sampling": {"sampling_rate": 0.5}, "dropout": {"deterministic": False}}.items():
        with refused(f'rngs: expected a key "{stream}", found none', f'rngs={{"{stream}": key}}'):
            call({}, **options)


def test_dropout_of_one_leaves_the_bias_of_the_logits_alone():
    model, variables = made(dropout=1.0)
    rngs = {"dropout": jax.random.key(0)}
    logits = jax.jit(lambda v: model.apply(v, SOURCE, TARGET, deterministic=False, rngs=rngs))(variables)
    bias = np.asarray(variables["params"]["logits"]["bias"])
    np.testing.assert_array_equal(logits, np.broadcast_to(bias, logits.shape))


def test_half_precision_computes_in_it_and_carries_float32():
    model = Seq2Seq(**SIZES, context="bahdanau", dtype=jnp.bfloat16)
    variables = drawn(model, SOURCE, TARGET)
    logits = jax.jit(lambda v: model.apply(v, SOURCE, TARGET, **LENGTHS))(variables)
    _, state = jax.jit(lambda v: model.apply(v, SOURCE, method="encode"))(variables)
    assert (logits.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    wide = jax.jit(lambda v: Seq2Seq(**SIZES, context="bahdanau").apply(v, SOURCE, TARGET, **LENGTHS))(variables)
    assert_close(logits, wide, dtype="bfloat16")


def test_what_cannot_be_served_is_refused():
    model, variables = made()
    with refused("source: expected tokens 0 to V - 1 = 6, found 0 to 7"):
        model.apply(variables, np.array([[0, 7]]), TARGET[:1])
    with refused("target: expected integers, found dtype float64"):
        model.apply(variables, SOURCE, TARGET * 1.0)
    with refused("source: expected tokens (B, T), found shape (5,)"):
        model.apply(variables, SOURCE[0], TARGET)
    with refused("target: expected 3 rows, as source, found 2 rows"):
        model.apply(variables, SOURCE, TARGET[:2])
    with refused("source_lengths: expected 0 to T = 5, found 1 to 6"):
        model.apply(variables, SOURCE, TARGET, source_lengths=np.array([6, 1, 1]))
    with refused("context: expected one of [None, 'cho', 'bahdanau', 'luong'], found 'dot'"):
        made(context="dot")
    with refused("context='luong' needs an encoder as wide as the decoder", "Write merge='sum'."):
        made(bidirectional=True)
    with refused("target_vocabulary: expected a positive integer, found 0"):
        Seq2Seq(H, source_vocabulary=3, target_vocabulary=0).init(jax.random.key(0), SOURCE, TARGET)
    with refused("dropout: expected a probability, found 2"):
        made(dropout=2)
    with refused("params/source_embedding: expected shape (9, 3), found shape (7, 3)"):
        Seq2Seq(**SIZES | {"source_vocabulary": 9}).apply(variables, SOURCE, TARGET)


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_rows_and_no_steps(context):
    model, variables = made(context=context)
    run = jax.jit(lambda v: (model.apply(v, SOURCE[:0], TARGET[:0]), model.apply(v, SOURCE, TARGET[:, :0])))
    assert [logits.shape for logits in run(variables)] == [(0, T, VT), (B, 0, VT)]


def test_a_negative_token_is_not_read_as_the_last():
    model, variables = made()

    @jax.jit
    def stepped(token):
        memory, state = model.apply(variables, SOURCE, method="encode")
        return model.apply(variables, memory, state, token, method="step")

    _, logits = stepped(np.full(B, -1))
    assert np.isnan(logits).all()
