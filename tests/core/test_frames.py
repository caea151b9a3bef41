"""Frames of several steps: the model equals one without frames on input that was stacked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn
from flax import nnx

import grujax
from grujax import GRUModel, InputError
from grujax.interop import fold_statistics
from grujax.interop.torch_keys import to_arrays

SIZE = 3
STATISTICS = {"input_mean": jnp.array([1.0, -2.0], jnp.float32), "input_std": jnp.array([2.0, 0.5], jnp.float32)}


def problem(n_steps=7, statistics=STATISTICS, **fields):
    """A model with frames, its variables, x (4, T, 2) and lengths (4,)."""
    model = GRUModel(5, 3, **{"pooling": "max", "bidirectional": True, "steps_per_frame": SIZE} | fields)
    x = jax.random.normal(jax.random.key(0), (4, n_steps, 2), jnp.float32)
    return model, drawn(model, x) | {"statistics": statistics}, x, jnp.array([7, 4, 1, 3])


def by_hand(model, variables, x, valid):
    """What `model` gives, from frames that NumPy stacks, by the same model without frames and statistics."""
    mean, std = (np.asarray(variables["statistics"][f"input_{s}"]) for s in ("mean", "std"))
    frames, whole = [], -(-x.shape[1] // SIZE) * SIZE
    for row, its in zip(np.asarray(x), np.asarray(valid), strict=True):
        steps = np.zeros((whole, 2), np.float32)
        steps[: len(row)][its] = ((row - mean) / std)[its]
        frames.append(steps.reshape(-1, SIZE * 2))
    flags = np.zeros((len(x), whole), bool)
    flags[:, : x.shape[1]] = valid
    plain = model.clone(steps_per_frame=1)
    return plain.apply({"params": variables["params"]}, np.stack(frames), mask=flags.reshape(len(x), -1, SIZE).any(2))


def mask_of(lengths, n_steps):
    return jnp.asarray(np.arange(n_steps) < np.asarray(lengths)[:, None])


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("n_steps", [7, 9])
def test_frames_are_stacked_steps(pooling, n_steps):
    model, variables, x, lengths = problem(n_steps, pooling=pooling)
    assert variables["params"]["encoder"]["gru"]["l0"]["w_ih"].shape == (SIZE * 2, 15)
    valid, bare = mask_of(lengths, n_steps), jnp.ones((4, n_steps), bool)
    np.testing.assert_allclose(model.apply(variables, x), by_hand(model, variables, x, bare), rtol=1e-5, atol=1e-6)
    expected = by_hand(model, variables, x, valid)
    np.testing.assert_allclose(model.apply(variables, x, lengths=lengths), expected, rtol=1e-5, atol=1e-6)
    holes = valid.at[0, 1].set(False).at[0, 3:6].set(False)
    expected = by_hand(model, variables, x, holes)
    np.testing.assert_allclose(model.apply(variables, x, mask=holes), expected, rtol=1e-5, atol=1e-6)


def test_what_stands_in_the_padding_of_a_frame_reaches_neither_output_nor_gradient():
    model, variables, x, lengths = problem()
    dirty = jnp.where(mask_of(lengths, 7)[..., None], x, jnp.nan)

    def loss(params, x):
        return (model.apply(variables | {"params": params}, x, lengths=lengths) ** 2).sum()

    clean, found = (jax.value_and_grad(loss)(variables["params"], a) for a in (x, dirty))
    jax.tree.map(np.testing.assert_array_equal, clean, found)


def test_other_layouts_batches_and_the_state():
    model, variables, x, lengths = problem()
    y, h_last = model.apply(variables, x, lengths=lengths, return_state=True)
    turned = model.clone(time_major=True).apply(variables, x.swapaxes(0, 1), lengths=lengths)
    np.testing.assert_allclose(turned, y, rtol=1e-5, atol=1e-6)
    square = model.apply(variables, x.reshape(2, 2, 7, 2), lengths=lengths.reshape(2, 2))
    np.testing.assert_allclose(square.reshape(4, 3), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.apply(variables, x[1, :4]), y[1], rtol=1e-5, atol=1e-6)
    assert h_last.shape == (2, 4, 5)
    one_way, variables, x, _ = problem(6, bidirectional=False, pooling="last")
    whole = one_way.apply(variables, x)
    _, state = one_way.apply(variables, x[:, :3], return_state=True)
    np.testing.assert_allclose(one_way.apply(variables, x[:, 3:], state), whole, rtol=1e-5, atol=1e-6)


def test_nnx_files_and_programs_keep_them(tmp_path):
    model, variables, x, lengths = problem()
    expected = model.apply(variables, x, lengths=lengths)
    module = grujax.nnx.from_linen(model, variables, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(module(x, lengths=lengths), expected)
    back, again = grujax.nnx.to_linen(module)
    assert back == model
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    grujax.save(tmp_path / "m.safetensors", model, variables)
    loaded, values = grujax.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.apply(values, x, lengths=lengths), expected)


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("fields", [{}, {"pooling": "mean"}, {"pooling": "last", "steps_per_frame": 4}])
def test_onnx_graphs_have_them(lengths, fields):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from grujax.interop import onnx

    model, variables, *_ = problem(**fields)
    onnx.to_onnx(model, variables, lengths=lengths, verify=True)


def test_stablehlo_has_them():
    from grujax.interop.stablehlo import to_stablehlo

    model, variables, x, lengths = problem(8)
    program = jax.export.deserialize(bytearray(to_stablehlo(model, variables, state=False)))
    lengths = lengths.astype(jnp.int32)
    np.testing.assert_allclose(
        program.call(x, lengths), model.apply(variables, x, lengths=lengths), rtol=1e-5, atol=1e-6
    )


def refused(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_what_frames_cannot_do_is_refused():
    model, variables, x, _ = problem()
    several = {"segments": jnp.zeros((4, 7), jnp.int32), "num_segments": 1}
    refused(lambda: model.clone(pooling=None).apply(variables, x), "^steps_per_frame=3 needs pooling")
    refused(lambda: model.clone(steps_per_frame=0).apply(variables, x), "^steps_per_frame: expected a positive integer")
    refused(lambda: model.apply(variables, x, **several), "^segments need steps_per_frame=1, not 3")
    refused(lambda: model.apply(variables, x[..., :1]), "^x: expected 2 input features")
    refused(lambda: fold_statistics(model, variables), "^steps_per_frame: expected 1, found 3")
    last, params = model.clone(pooling="last", bidirectional=False), {"params": variables["params"]}
    refused(lambda: to_arrays(last, params), "^steps_per_frame: expected 1")
