"""An ensemble: each member trains as it would alone, the ensemble predicts their mean, and it is saved in one file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import QUICK, run, toy
from drawn import drawn
from levels import DATA, END, SMALL, TARGETS
from refusals import refused
from scipy.special import log_softmax, logsumexp

import grujax
from grujax import interop
from grujax.data import batches, load_sequences
from grujax.linen import GRUEnsemble
from grujax.nnx import from_linen
from grujax.saving import read
from grujax.training import TrainConfig, chosen, fit, outputs_of
from grujax.training.rows import constants_of, model_for
from grujax.training.step import Draws, draw, initial_state, make_optimizer, new_parameters, train_step

CONFIG = dataclasses.replace(SMALL, members=3, epochs=3, validation=0.2)


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix integers with floats
        yield


def of_each(model, variables, data):
    """Returns the outputs of each member, stacked."""
    return np.stack([outputs_of(model.model, model.member(variables, n), data) for n in range(model.members)])


def test_a_step_moves_each_member_as_it_moves_alone():
    """Each member has its own random draws. Gradients are clipped and accumulated separately for each member."""
    config, steps = dataclasses.replace(chosen(CONFIG, DATA.train)[0], accumulate=2, clip_norm=0.1), 6
    constants = constants_of(DATA.train)
    model = model_for(config, DATA.train, constants)
    given = jax.device_put(constants)
    params = new_parameters(GRUEnsemble(model, 3, True), 2, jax.random.key(0))
    members = jax.device_get(params)
    states = {3: initial_state(params, make_optimizer(config, steps), config)}
    alone = dataclasses.replace(config, members=1)
    for n in range(3):
        own = jax.tree.map(lambda a, n=n: jax.device_put(a[n]), members)
        states[n] = initial_state(own, make_optimizer(alone, steps), alone)
    batch, *_ = batches(DATA.train, 16, (12,))
    for step in range(steps):
        draws = draw(config, step)
        assert draws.share.shape == (16, 3) and len(set(draws.seed.tolist())) == 3
        for n in range(3):
            own = Draws(draws.share[:, n], draws.seed[n])
            states[n] = train_step(model, alone, steps, states[n], given, batch, own)
        states[3] = train_step(model, config, steps, states[3], given, batch, draws)
    end, own_ends = END(config, steps, states[3]), [END(alone, steps, states[n]) for n in range(3)]
    assert bool(end.finite) and end.loss.shape == (3,)
    for n in range(3):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
        own = states[n].params, own_ends[n].average
        jax.tree.map(lambda a, b, n=n, close=close: close(np.asarray(a)[n], b), (states[3].params, end.average), own)
        np.testing.assert_allclose(np.asarray(states[3].loss)[n], states[n].loss, rtol=1e-5)


@pytest.mark.parametrize(
    "data, changes",  # estimators/test_forecaster.py tests the mean of plain values
    [(DATA, {}), pytest.param(TARGETS, {"quantiles": (0.2, 0.8)}, marks=pytest.mark.slow)],
)
def test_what_is_kept_predicts_the_mean_of_its_members(data, changes, tmp_path):
    """The mean of the probabilities, or of each quantile. The saved file and the scores follow from it."""
    fitted = fit(dataclasses.replace(CONFIG, **changes), data)
    model = fitted.model
    assert isinstance(model, GRUEnsemble) and model.members == 3 and model.classes == (data is DATA)
    each = of_each(model, fitted.variables, data.test)
    assert np.abs(each - each[0]).max() > 1e-3  # the members differ
    mean = logsumexp(log_softmax(each, -1), 0) - np.log(3) if data is DATA else each.mean(0)
    np.testing.assert_allclose(fitted.outputs(data.test), mean, rtol=1e-4, atol=1e-5)
    assert fitted.test is not None
    if data is DATA:
        nll = -mean[np.arange(len(mean)), data.test.y].mean()
        assert fitted.test.loss == pytest.approx(nll, rel=1e-4)
        assert fitted.test.accuracy == np.mean(mean.argmax(-1) == data.test.y)
    grujax.save(tmp_path / "m", model, fitted.variables, {"labels": None})
    saved = read(tmp_path / "m")
    assert saved.model == model and saved.metadata["labels"] is None and "ensemble" not in saved.metadata
    jax.tree.map(np.testing.assert_array_equal, saved.variables, dict(fitted.variables))


def test_an_ensemble_gives_zeros_at_steps_that_are_not_valid():
    ensemble = GRUEnsemble(grujax.GRUModel(4, 3, pooling=None), 2, True)
    x = np.ones((2, 5, 2), np.float32)
    variables = drawn(ensemble, x)
    found = np.asarray(jax.jit(ensemble.apply)(variables, x, lengths=np.array([5, 2])))
    np.testing.assert_allclose(np.exp(found).sum(-1)[[0, 1], [4, 1]], 1, rtol=1e-5)
    assert not found[1, 2:].any() and found[1, :2].all()


def test_an_ensemble_goes_on_where_it_was_ended(tmp_path):
    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    whole = fit(CONFIG, DATA)
    assert fit(CONFIG, DATA, checkpoints=tmp_path, on_epoch=stop).interrupted
    resumed = fit(CONFIG, DATA, checkpoints=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    assert [e.loss for e in resumed.history] == [e.loss for e in whole.history]
    with refused("members: expected 3, as in the checkpoint"):
        fit(dataclasses.replace(CONFIG, members=1), DATA, checkpoints=tmp_path)
    with refused("variables: expected variables of GRUModel", "other shapes for params/"):
        fit(dataclasses.replace(CONFIG, members=1), DATA, variables=whole.variables)
    again = fit(CONFIG, DATA, variables=whole.variables)
    assert again.history[0].loss < whole.history[0].loss


def test_the_commands_train_evaluate_and_predict_with_an_ensemble_and_export_refuses_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, new = toy("toy.npz"), toy("new.npz", seed=1, count=10)
    code, out, err = run(capsys, "train", source, "--test", new, "--output", "out", *QUICK, "--members", "2")
    assert (code, err) == (0, "")
    figure = next(line for line in out.splitlines() if line.startswith("test accuracy"))
    code, out, _ = run(capsys, "evaluate", "out", new)
    assert code == 0 and figure.replace("test", "new.npz", 1) in out
    code, out, _ = run(capsys, "predict", "out", new)
    saved = read("out/model.safetensors")
    data = load_sequences("new.npz", need_labels=False)
    each = of_each(saved.model, saved.variables, data)
    mean = np.exp(log_softmax(each, -1)).mean(0)
    assert [line.split(",")[2] for line in out.splitlines()[1:]] == [f"{p.max():.6f}" for p in mean.astype(np.float64)]
    for target in ("stablehlo", "safetensors"):
        code, _, err = run(capsys, "export", "out", "--to", target)
        assert code == 2 and "GRUEnsemble in out" in err and "ensemble.member(variables, 0)" in err, err


def test_what_takes_one_model_refuses_an_ensemble_by_name():
    ensemble = GRUEnsemble(grujax.GRUModel(4, 2), 2, True)
    variables = drawn(ensemble, np.ones((1, 1, 3), np.float32))
    taking = [interop.stablehlo.to_stablehlo, interop.flax.to_flax, interop.fold_statistics, from_linen]
    taking += [interop.keras.to_layers]
    for one in taking:
        with refused("model: expected", "GRUEnsemble"):
            one(ensemble, variables, **({"rngs": None} if one is from_linen else {}))


def test_as_many_members_as_the_variables_have():
    ensemble = GRUEnsemble(grujax.GRUModel(4, 2), 3, True)
    x = np.ones((1, 1, 3), np.float32)
    variables = drawn(ensemble, x)
    with refused("variables: expected parameters whose first axis has 5 members, found shape (3,"):
        dataclasses.replace(ensemble, members=5).apply(variables, x)
    for index in (3, -1):
        with refused(f"index: expected 0 to 2, found {index}"):
            ensemble.member(variables, index)


def test_probabilities_sum_to_one_in_bfloat16():
    ensemble = GRUEnsemble(grujax.GRUModel(4, 5, dtype=jnp.bfloat16), 3, True)
    x = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
    found = jax.jit(ensemble.apply)(drawn(ensemble, x), x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"members": 3}, "expected a first axis of 3 members, found shape (2, "),
        ({"members": 10**12}, "expected a first axis of 1000000000000 members"),
        ({"members": -1}, "members: expected a positive integer"),
        ({"members": True}, "members: expected a positive integer"),
        ({"classes": 1}, "classes: expected True or False"),
        ({"other": 1}, "TypeError"),
        (None, "expected a tensor w_ih (I, 3H) of the first layer"),
        ("layer", "model: expected a GRUModel with a single head"),
    ],
)
def test_a_file_that_is_no_ensemble_is_refused(change, message, tmp_path):
    ensemble = GRUEnsemble(grujax.GRUModel(4, 2), 2, True)
    x = np.ones((1, 1, 3), np.float32)
    grujax.save(tmp_path / "m", ensemble, drawn(ensemble, x))
    if change == "layer":
        grujax.save(tmp_path / "m", grujax.GRU(4), drawn(grujax.GRU(4), x))

    def rewritten(tensors, header):
        if change is None:
            del header["ensemble"]
        else:
            header["ensemble"] = {"members": 2, "classes": True, **(change if isinstance(change, dict) else {})}

    rewrite(tmp_path / "m", rewritten)
    with refused(message, "m"):
        grujax.load(tmp_path / "m")


def rewrite(path, change):
    """Rewrites a model file with a changed header and a matching digest."""
    import safetensors.numpy

    from grujax.saving import model_file

    with safetensors.safe_open(str(path), framework="np") as file:
        header = json.loads(file.metadata()["grujax"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del header["sha256"]
    change(tensors, header)
    header["sha256"] = model_file._sha256(header, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"grujax": json.dumps(header)}))


def test_weights_of_members_that_cannot_be_are_not_saved(tmp_path):
    ensemble = GRUEnsemble(grujax.GRUModel(4, 2), 2, True)
    variables = drawn(ensemble, np.ones((1, 1, 3), np.float32))
    for broken, message in (
        (ensemble.member(variables, 0), "a first axis of 2 members"),
        (
            jax.tree.map(
                lambda a: np.where(np.arange(2).reshape(-1, *[1] * (a.ndim - 1)) == 1, np.float32(np.nan), a), variables
            ),
            "finite numbers",
        ),
    ):
        with refused(message):
            grujax.save(tmp_path / "m", ensemble, broken)
    with refused("members: expected at least 1, found 0"):
        TrainConfig(members=0)


def test_an_estimator_of_several_members():
    estimators = pytest.importorskip("grujax.estimators", reason="scikit-learn (extra `sklearn`) is not installed")
    x, y = DATA.train.x, np.array(DATA.train.labels)[DATA.train.y]
    options = {"hidden_size": 8, "epochs": 2, "members": 2, "warm_start": True}
    one = estimators.GRUClassifier(**options).fit(x, y)
    each = of_each(one.fitted_.model, one.fitted_.variables, grujax.data.sequences(x))
    np.testing.assert_allclose(one.predict_proba(x), np.exp(log_softmax(each, -1)).mean(0), rtol=1e-4)
    one.set_params(members=1)
    with refused("warm_start=True continues with the model of the previous fit (members: expected 2, found 1)"):
        one.fit(x, y)
