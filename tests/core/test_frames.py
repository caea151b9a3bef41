"""A model with `steps_per_frame` equals a model without frames on input that NumPy has stacked."""

from functools import partial

import jax
import numpy as np
import pytest
from drawn import drawn
from flax import nnx
from pairs import by_turns

import grujax
from grujax import GRUModel, InputError
from grujax.interop import fold_statistics
from grujax.interop.torch_keys import to_arrays

SIZE = 3
STATISTICS = {"input_mean": np.float32([1.0, -2.0]), "input_std": np.float32([2.0, 0.5])}


@partial(jax.jit, static_argnums=0, static_argnames="return_state")
def run(model, variables, *args, **options):
    """Calls the model as one program instead of one for each operation."""
    return model.apply(variables, *args, **options)


def problem(n_steps=7, statistics=STATISTICS, **fields):
    """A model with frames, its variables, x (4, T, 2) and lengths (4,)."""
    model = GRUModel(5, 3, **{"pooling": "max", "bidirectional": True, "steps_per_frame": SIZE} | fields)
    x = np.random.default_rng(0).normal(size=(4, n_steps, 2)).astype(np.float32)
    return model, drawn(model, x) | {"statistics": statistics}, x, np.array([7, 4, 1, 3])


def by_hand(model, variables, x, valid):
    """The expected output: NumPy normalises and stacks the input of the same model without frames and statistics."""
    mean, std = (np.asarray(variables["statistics"][f"input_{s}"]) for s in ("mean", "std"))
    frames, whole = [], -(-x.shape[1] // SIZE) * SIZE
    for row, its in zip(np.asarray(x), np.asarray(valid), strict=True):
        steps = np.zeros((whole, 2), np.float32)
        steps[: len(row)][its] = ((row - mean) / std)[its]
        frames.append(steps.reshape(-1, SIZE * 2))
    flags = np.zeros((len(x), whole), bool)
    flags[:, : x.shape[1]] = valid
    plain = model.clone(steps_per_frame=1)
    return run(plain, {"params": variables["params"]}, np.stack(frames), mask=flags.reshape(len(x), -1, SIZE).any(2))


def mask_of(lengths, n_steps):
    return np.arange(n_steps) < lengths[:, None]


@pytest.mark.parametrize(("pooling", "n_steps"), by_turns(["last", "mean", "max", "attention"], [7, 9], quick=1))
def test_frames_are_stacked_steps(pooling, n_steps):
    model, variables, x, lengths = problem(n_steps, pooling=pooling)
    assert variables["params"]["encoder"]["gru"]["l0"]["w_ih"].shape == (SIZE * 2, 15)
    valid, bare = mask_of(lengths, n_steps), np.ones((4, n_steps), bool)
    np.testing.assert_allclose(run(model, variables, x), by_hand(model, variables, x, bare), rtol=1e-5, atol=1e-6)
    expected = by_hand(model, variables, x, valid)
    np.testing.assert_allclose(run(model, variables, x, lengths=lengths), expected, rtol=1e-5, atol=1e-6)
    holes = valid.copy()
    holes[0, [1, 3, 4, 5]] = False
    expected = by_hand(model, variables, x, holes)
    np.testing.assert_allclose(run(model, variables, x, mask=holes), expected, rtol=1e-5, atol=1e-6)


def test_what_stands_in_the_padding_of_a_frame_reaches_neither_output_nor_gradient():
    model, variables, x, lengths = problem()
    dirty = np.where(mask_of(lengths, 7)[..., None], x, np.float32(np.nan))

    @jax.jit
    @jax.value_and_grad
    def loss(params, x):
        return (model.apply(variables | {"params": params}, x, lengths=lengths) ** 2).sum()

    clean, found = (loss(variables["params"], a) for a in (x, dirty))
    jax.tree.map(np.testing.assert_array_equal, clean, found)


def test_other_layouts_batches_and_the_state():
    model, variables, x, lengths = problem()
    y, h_last = jax.device_get(run(model, variables, x, lengths=lengths, return_state=True))
    turned = run(model.clone(time_major=True), variables, x.swapaxes(0, 1), lengths=lengths)
    np.testing.assert_allclose(turned, y, rtol=1e-5, atol=1e-6)
    square = run(model, variables, x.reshape(2, 2, 7, 2), lengths=lengths.reshape(2, 2))
    np.testing.assert_allclose(np.asarray(square).reshape(4, 3), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(model, variables, x[1, :4]), y[1], rtol=1e-5, atol=1e-6)
    assert h_last.shape == (2, 4, 5)
    one_way, variables, x, _ = problem(6, bidirectional=False, pooling="last")
    whole = run(one_way, variables, x)
    _, state = run(one_way, variables, x[:, :3], return_state=True)
    np.testing.assert_allclose(run(one_way, variables, x[:, 3:], state), whole, rtol=1e-5, atol=1e-6)


def test_nnx_files_and_programs_keep_them(tmp_path):
    model, variables, x, lengths = problem()
    expected = run(model, variables, x, lengths=lengths)
    module = grujax.nnx.from_linen(model, variables, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(nnx.jit(lambda m: m(x, lengths=lengths))(module), expected)
    back, again = grujax.nnx.to_linen(module)
    assert back == model
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, values = grujax.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(run(loaded, values, x, lengths=lengths), expected)


IN_ONNX = [{}, {"pooling": "mean"}, {"pooling": "last", "steps_per_frame": 4}]


@pytest.mark.parametrize(("fields", "lengths"), by_turns(IN_ONNX, [True, False], quick=1))
def test_onnx_graphs_have_them(lengths, fields):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from grujax.interop import onnx

    model, variables, *_ = problem(**fields)
    onnx.to_onnx(model, variables, lengths=lengths, verify=True)


def test_stablehlo_has_them():
    from grujax.interop.stablehlo import to_stablehlo

    model, variables, x, lengths = problem(8)
    program = jax.export.deserialize(bytearray(to_stablehlo(model, variables, state=False)))
    lengths = lengths.astype(np.int32)
    expected = run(model, variables, x, lengths=lengths)
    np.testing.assert_allclose(program.call(x, lengths), expected, rtol=1e-5, atol=1e-6)


def refused(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_what_frames_cannot_do_is_refused():
    model, variables, x, _ = problem()
    several = {"segments": np.zeros((4, 7), np.int32), "num_segments": 1}
    refused(lambda: model.clone(pooling=None).apply(variables, x), "^steps_per_frame=3 needs pooling")
    refused(lambda: model.clone(steps_per_frame=0).apply(variables, x), "^steps_per_frame: expected a positive integer")
    refused(lambda: model.apply(variables, x, **several), "^segments need steps_per_frame=1, not 3")
    refused(lambda: model.apply(variables, x[..., :1]), "^x: expected 2 input features")
    refused(lambda: fold_statistics(model, variables), "^steps_per_frame: expected 1, found 3")
    last, params = model.clone(pooling="last", bidirectional=False), {"params": variables["params"]}
    refused(lambda: to_arrays(last, params), "^steps_per_frame: expected 1")
