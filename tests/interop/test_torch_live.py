"""Torch modules are run: the model that they compute is identified, or they are refused. Wrappers are removed."""

import json
import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from applied import applied
from compilations import compiled
from pairs import by_turns
from refusals import refused

from grujax import GRU, GRUCell, GRUModel
from grujax.interop import ConversionWarning, find, load
from grujax.interop.hypotheses import last_output
from grujax.interop.torch import from_torch, to_torch
from grujax.testing import assert_close

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn
prune = pytest.importorskip("torch.nn.utils.prune", reason="torch is not installed")
I, H, O = 3, 5, 2


class Module(nn.Module):
    """A GRU and a Linear. Returns `then(module, output, h_n)`."""

    def __init__(self, then, before=None, bidirectional=True, num_layers=1, **options):
        super().__init__()
        torch.manual_seed(3)
        options = {"batch_first": True} | options
        self.rnn = nn.GRU(I, H, num_layers, bidirectional=bidirectional, **options)
        self.fc = nn.Linear(H * (1 + bidirectional), O)
        self.then, self.before = then, before

    def forward(self, x):
        return self.then(self, *self.rnn(x if self.before is None else self.before(x)))


def both(h):
    return torch.cat([h[-2], h[-1]], -1)


ONE = {"bidirectional": False}
READ = {
    "last states": (lambda: Module(lambda m, o, h: m.fc(both(h))), GRUModel(H, O, bidirectional=True)),
    "last step": (lambda: Module(lambda m, o, h: m.fc(o[:, -1]), **ONE), GRUModel(H, O)),
    "last step, both directions": (
        lambda: Module(lambda m, o, h: m.fc(o[:, -1])),
        GRUModel(H, O, bidirectional=True, pooling=last_output),
    ),
    "mean": (lambda: Module(lambda m, o, h: m.fc(o.mean(1))), GRUModel(H, O, bidirectional=True, pooling="mean")),
    "maximum": (
        lambda: Module(lambda m, o, h: m.fc(o.max(1).values), num_layers=2),
        GRUModel(H, O, bidirectional=True, num_layers=2, pooling="max"),
    ),
    "every step, and the state": (
        lambda: Module(lambda m, o, h: (m.fc(o), h)),
        GRUModel(H, O, bidirectional=True, pooling=None),
    ),
    "time first": (
        lambda: Module(lambda m, o, h: m.fc(o[-1]), batch_first=False, **ONE),
        GRUModel(H, O, time_major=True),
    ),
    "sigmoid": (
        lambda: Module(lambda m, o, h: m.fc(h[-1]).sigmoid(), **ONE),
        GRUModel(H, O, output_activation="sigmoid"),
    ),
    "softmax on every step": (
        lambda: Module(lambda m, o, h: {"probabilities": m.fc(o).softmax(-1)}, **ONE),
        GRUModel(H, O, pooling=None, output_activation="softmax"),
    ),
    "no head": (lambda: nn.Sequential(nn.GRU(I, H, batch_first=True)), GRU(H)),
    "dropout of the layers": (
        lambda: Module(lambda m, o, h: m.fc(h[-1]), num_layers=2, dropout=0.25, **ONE),
        GRUModel(H, O, num_layers=2, dropout=0.25),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_a_module_computes_is_found_by_running_it(name):
    """The model gives the module's outputs, at a size that the proof did not use. The module is left unchanged."""
    make, expected = READ[name]
    module = make().train()
    model, variables = from_torch(module)
    assert model == expected and module.training
    x = np.random.default_rng(5).normal(size=(4, 9, I)).astype("f")
    with torch.no_grad():
        theirs = module.eval()(torch.tensor(x))
    theirs = next(iter(theirs.values())) if isinstance(theirs, dict) else theirs
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    found = jax.tree.leaves(applied(model, variables, x))[0]
    assert_close(found, theirs.numpy())


def test_a_proof_compiles_whole_programs():
    """Outside jit, JAX would compile dozens of operations, which would take seconds in a single conversion."""
    programs = compiled(lambda: from_torch(Module(lambda m, o, h: m.fc(o.mean(1)), num_layers=2))[1])
    assert set(programs) <= {"jit(outputs)", "jit(_activated)"} and len(programs) <= 13


MAKE = {"model": lambda: Module(lambda m, o, h: m.fc(o.mean(1))), "layers": lambda: nn.GRU(I, H, 2)}
MAKE["cell"] = lambda: nn.GRUCell(I, H)


@pytest.mark.parametrize(("dtype", "kind"), by_turns(["float16", "bfloat16", "float64"], [*MAKE], quick=2))
def test_modules_of_every_dtype_are_proved(dtype, kind):
    model, _ = from_torch(MAKE[kind]().to(getattr(torch, dtype)))
    assert model.param_dtype == getattr(jnp, dtype) and getattr(model, "pooling", "mean") == "mean"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_another_function_of_any_dtype_is_refused(dtype):
    with refused("another function"):
        from_torch(Module(lambda m, o, h: m.fc(o[:, 0])).to(getattr(torch, dtype)))


class InFront(nn.Module):
    def __init__(self):
        super().__init__()
        self.front, self.rnn = nn.Linear(H, H), nn.GRU(H, H, batch_first=True)

    def forward(self, x):
        return self.rnn(self.front(x))[1][-1]


class Unrolled(nn.Module):
    """Cells in a loop, as users write them."""

    def __init__(self, backwards=False):
        super().__init__()
        self.cells, self.fc, self.backwards = (
            nn.ModuleList([nn.GRUCell(I, H), nn.GRUCell(H, H)]),
            nn.Linear(H, O),
            backwards,
        )

    def forward(self, x):
        states = [x.new_zeros(len(x), H) for _ in self.cells]
        for t in reversed(range(x.shape[1])) if self.backwards else range(x.shape[1]):
            a = x[:, t]
            for k, cell in enumerate(self.cells):
                a = states[k] = cell(a, states[k])
        return self.fc(a)


REFUSED = {
    "relu before the head": lambda: Module(lambda m, o, h: m.fc(o[:, -1].relu()), **ONE),
    "first layer": lambda: Module(lambda m, o, h: m.fc(h[0]), num_layers=2, **ONE),
    "attention": lambda: Module(lambda m, o, h: m.fc((o.sum(-1, keepdim=True).softmax(1) * o).sum(1)), **ONE),
    "swapped directions": lambda: Module(lambda m, o, h: m.fc(torch.cat([h[-1], h[-2]], -1))),
    "flipped input": lambda: Module(lambda m, o, h: m.fc(h[-1]), before=lambda x: x.flip(1), **ONE),
    "halved head": lambda: Module(lambda m, o, h: m.fc(h[-1]) / 2, **ONE),
    "scaled input": lambda: Module(lambda m, o, h: m.fc(h[-1]), before=lambda x: 2 * x, **ONE),
    "first step": lambda: Module(lambda m, o, h: m.fc(o[:, 0]), **ONE),
    "sum over time": lambda: Module(lambda m, o, h: m.fc(o.sum(1)), **ONE),
    "head applied twice": lambda: Module(lambda m, o, h: (m.fc(h[-1]), m.fc(o[:, 0])), **ONE),
    "head unused": lambda: Module(lambda m, o, h: h, **ONE),
    "mean of the last ten steps": lambda: Module(lambda m, o, h: m.fc(o[:, -10:].mean(1)), **ONE),
    "the first twelve steps": lambda: Module(lambda m, o, h: m.fc(h[-1]), before=lambda x: x[:, :12], **ONE),
    "clipped input": lambda: Module(lambda m, o, h: m.fc(h[-1]), before=lambda x: x.clamp(-6, 6), **ONE),
    "time exchanged": lambda: Module(lambda m, o, h: m.fc(o[:, -1]), batch_first=False, **ONE),
    "a Linear in front": InFront,
    "a loop backwards": lambda: Unrolled(True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_function_is_refused_with_the_differences(name):
    with refused("module_or_state_dict", "a function that a grujax model computes", "interop.find"):
        from_torch(REFUSED[name]())


def test_an_h0_of_ones_and_a_second_linear_are_refused():
    module = Module(None, **ONE)
    module.forward = lambda x: module.fc(module.rnn(x, torch.ones(1, len(x), H))[1][-1])
    with refused("another function", "off by"):
        from_torch(module)
    with refused("one nn.Linear beside", "interop.find"):
        from_torch(nn.Sequential(nn.GRU(I, H), nn.Linear(H, H), nn.Linear(H, O)))


def test_cells_in_a_loop_are_layers_where_they_compute_that():
    module = Unrolled()
    model, variables = from_torch(module)
    assert model == GRUModel(H, O, num_layers=2)
    x = np.random.default_rng(0).normal(size=(4, 6, I)).astype("f")
    assert_close(applied(model, variables, x), module(torch.tensor(x)).detach().numpy())
    assert from_torch(module, prefix="cells.1")[0] == GRUCell(H)
    with refused("an nn.GRU, or an nn.GRUCell alone", "interop.find"):
        from_torch({k: v for k, v in module.state_dict().items() if "cells.0" in k or "fc" in k})


def test_what_a_state_dict_does_not_tell_is_an_argument_and_its_default_is_announced(caplog):
    module = Module(lambda m, o, h: m.fc(o.mean(1)), **ONE)
    state = module.state_dict()
    with caplog.at_level(logging.WARNING, "grujax.interop"):
        assert from_torch(state)[0] == GRUModel(H, O)
    assert "read as: Linear on the last state" in caplog.text
    caplog.clear()
    for pooling in ("last", "mean", None):
        model, variables = from_torch(state, pooling=pooling)
        assert model.pooling == pooling
    assert not caplog.text
    module.then = lambda m, o, h: m.fc(o)
    x = torch.randn(2, 4, I)
    assert_close(applied(model, variables, x.numpy()), module(x).detach().numpy())
    back = to_torch(model, variables, "rnn", "fc", verify=True)
    assert all(torch.equal(back[key], a) for key, a in state.items())


def test_integers_beside_a_gru_do_not_keep_it_from_being_taken():
    state = {"positions": torch.arange(5), **{f"rnn.{key}": a for key, a in nn.GRU(I, H).state_dict().items()}}
    assert from_torch(state, prefix="rnn")[0] == GRU(H)
    with refused("positions", "int64", "interop.find"):
        from_torch(state)


WEIGHTS = {
    "weight_norm": lambda m: nn.utils.weight_norm(m.rnn, "weight_hh_l0"),
    "weight_norm of the head": lambda m: nn.utils.weight_norm(m.fc),
    "the newer weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m.rnn, "weight_ih_l0"),
    "pruning": lambda m: prune.random_unstructured(m.rnn, "weight_hh_l0", amount=0.4),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m.rnn, "weight_hh_l0"),
    "the newer spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m.rnn, "weight_hh_l0"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_effective_weights_are_taken(name):
    """From a module whose parameters were changed afterwards, and from its state dict."""
    module = Module(lambda m, o, h: m.fc(h[-1]), **ONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: the older forms are deprecated
        WEIGHTS[name](module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    model, variables = from_torch(module)
    x = torch.randn(2, 4, I)
    assert_close(applied(model, variables, x.numpy()), module.eval()(x).detach().numpy())
    for a, b in zip(
        jax.tree.leaves(from_torch(module.state_dict(), verify=True)[1]), jax.tree.leaves(variables), strict=True
    ):
        assert_close(a, b)


@pytest.mark.parametrize(
    "parts",
    [{"g": (1,)}, {"g": (5,), "v": (15, 5)}, {"orig": (15, 5), "u": (4,), "v": (5,)}, {"orig": (15, 5)}],
    ids=str,
)
def test_weights_that_something_else_computes_are_refused(parts):
    state = Module(None, **ONE).state_dict()
    del state["rnn.weight_hh_l0"]
    state |= {f"rnn.weight_hh_l0_{part}": torch.ones(shape) for part, shape in parts.items()}
    with refused("rnn.weight_hh_l0", "Pass the live module", *parts):
        from_torch(state)


def test_a_head_without_bias_has_zeros_and_says_so():
    module = Module(lambda m, o, h: m.fc(h[-1]), **ONE)
    module.fc = nn.Linear(H, O, bias=False)
    for source in (module, module.state_dict()):
        with pytest.warns(ConversionWarning, match="the head has no bias"):
            model, variables = from_torch(source)
        assert model == GRUModel(H, O) and not variables["params"]["head"]["bias"].any()


def test_a_matrix_that_may_be_an_embedding_in_front_is_no_head_unless_it_is_called_one():
    """The encoder of torch's translation tutorial, where I equals H."""
    encoder = nn.ModuleDict({"embedding": nn.Embedding(7, H), "gru": nn.GRU(H, H)})
    state = encoder.state_dict()
    with refused("embedding.weight", "nn.Embedding in front", "pooling=", "prefix="):
        from_torch(state)
    assert from_torch(state, prefix="gru")[0] == GRU(H)
    with pytest.warns(ConversionWarning, match="the head has no bias"):
        assert from_torch(state, pooling="last")[0] == GRUModel(H, 7)
    assert from_torch(state | {"embedding.bias": torch.ones(7)})[0] == GRUModel(H, 7)


def test_a_view_that_torch_negates_only_when_it_is_read():
    state = nn.GRU(I, H).state_dict()
    weight = state["weight_ih_l0"]
    state["weight_ih_l0"] = torch.complex(weight, -weight).conj().imag
    assert state["weight_ih_l0"].is_neg()
    np.testing.assert_array_equal(from_torch(state)[1]["params"]["l0"]["w_ih"], weight.numpy().T)


def wrapped():
    module = Module(lambda m, o, h: m.fc(h[-1]), **ONE)
    compiled = {f"_orig_mod.module.{key}": a for key, a in module.state_dict().items()}
    trained = {"epoch": 3, "optimizer_state_dict": {"state": {}}, "loss": torch.tensor(0.5)}
    alone = nn.GRU(I, H)
    return {
        "_orig_mod": (module, compiled),
        "state_dict": (module, trained | {"state_dict": module.state_dict()}),
        "model_state_dict": (module, trained | {"model_state_dict": compiled}),
        "model": (module, trained | {"model": module.state_dict()}),
        "params": (module, {"params": module.state_dict()}),
        "the one of several": (module, {"model": {"units": 5}, "net": {"params": module.state_dict()}}),
        "a prefix without a head": (alone, {f"model.encoder.{key}": a for key, a in alone.state_dict().items()}),
        "NumPy": (module, {key: a.numpy() for key, a in module.state_dict().items()}),
    }


@pytest.mark.parametrize("name", wrapped())
def test_wrappers_of_state_dicts_are_taken_off(name, tmp_path):
    module, state = wrapped()[name]
    expected = from_torch(module, verify=False)
    found = from_torch(state)
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    if name == "NumPy":
        np.savez(tmp_path / "m.npz", **state)
    else:
        torch.save(state, tmp_path / "m.ckpt")
    found = load(tmp_path / ("m.npz" if name == "NumPy" else "m.ckpt"), pooling="last" if "fc" in dir(module) else ...)
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])


@pytest.mark.parametrize("read", [from_torch, find])
@pytest.mark.parametrize("inside", [False, True])
def test_of_two_state_dicts_in_a_checkpoint_none_is_taken_in_silence(inside, read):
    student, teacher = nn.GRU(I, H).state_dict(), nn.GRU(I, H).state_dict()
    wrap = (lambda state: {"state_dict": state}) if inside else (lambda state: state)
    with refused("one state dict", "found 2", "model/", "net/", "one of them alone"):
        read({"model": wrap(student), "net": wrap(teacher)})
    assert from_torch({"model": student, "ema": teacher})[0] == GRU(H)


def test_modules_in_wrappers_are_run_without_them():
    module = Module(lambda m, o, h: m.fc(o.mean(1)), **ONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch's own imports
        compiled = torch.compile(module)
    for of in (nn.DataParallel(module), compiled):
        assert from_torch(of)[0] == GRUModel(H, O, pooling="mean")
    with refused("a TorchScript program", "state_dict()"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from_torch(torch.jit.trace(nn.GRU(I, H), torch.ones(2, 3, I)))


def test_quantised_weights_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: quantisation moves to another package
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.GRU(I, H)), {nn.GRU})
    with refused("the quantised torch.ao.nn.quantized.dynamic", "from before"):
        from_torch(quantised)
    state = nn.GRU(I, H).state_dict()
    for dtype in (torch.int8, torch.float8_e4m3fn):
        with refused("weight_hh_l0", "quantised"):
            from_torch(state | {"weight_hh_l0": state["weight_hh_l0"].to(dtype)})
    from safetensors.torch import save_file

    save_file(state | {"weight_hh_l0": state["weight_hh_l0"].to(torch.int8)}, tmp_path / "m.safetensors")
    with refused("weight_hh_l0", "int8", "quantised", "m.safetensors"):
        load(tmp_path / "m.safetensors")
    save_file(state | {"weight_hh_l0": state["weight_hh_l0"].to(torch.float8_e4m3fn)}, tmp_path / "m.safetensors")
    with refused("weight_hh_l0", "F8_E4M3", "quantised", "m.safetensors"):
        load(tmp_path / "m.safetensors")


def test_programs_of_torch_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.GRU(I, H), torch.ones(2, 3, I)), tmp_path / "m.pt")
        torch.export.save(torch.export.export(nn.GRU(I, H), (torch.ones(2, 3, I),)), tmp_path / "m.pt2")
    with refused("a TorchScript program", "state dict", "m.pt"):
        load(tmp_path / "m.pt")
    with refused("a program of torch.export", "m.pt2"):
        load(tmp_path / "m.pt2")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_joined_through_their_index_or_refused(kind, tmp_path):
    from safetensors.torch import save_file

    state = nn.GRU(I, H).state_dict()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{k}-of-00002.{kind}" for k in (1, 2)]
    parts = [{k: a for k, a in state.items() if k.startswith(start)} for start in ("weight", "bias")]
    for name, part in zip(names, parts, strict=True):
        (save_file if kind == "safetensors" else torch.save)(part, tmp_path / name)
    with refused("one shard of several", f"{stem}.{kind}.index.json"):
        load(tmp_path / names[0])
    index = tmp_path / f"{stem}.{kind}.index.json"
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    model, variables = load(tmp_path / names[1])
    assert model == GRU(H)
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(state)[1])
    for changed, part in (
        ({"weight_map": where | {"bias_hh_l0": "../" + names[0]}}, "in the folder of their index"),
        ({"weight_map": where | {"more": names[0]}}, "the tensors that the index names"),
        ({"weight_map": {**where, "bias_hh_l0": names[0].replace("00001", "00009")}}, "no such file"),
        ([], "an index of shards"),
    ):
        index.write_text(json.dumps(changed))
        with refused(part):
            load(tmp_path / names[0])


def test_a_lazy_module_has_no_weights_yet():
    module = nn.ModuleDict({"rnn": nn.GRU(I, H), "fc": nn.LazyLinear(O)})
    for source, name in ((module, "fc"), (module.state_dict(), "fc.weight")):
        with refused(name, "Run the", "once"):
            from_torch(source)
    assert from_torch(module, prefix="rnn")[0] == GRU(H)


def test_a_gru_that_a_hook_or_a_subclass_makes_another_is_refused():
    class Doubled(nn.GRU):
        def forward(self, x, h=None):
            return super().forward(2 * x, h)

    hooked = nn.GRU(I, H)
    hooked.register_forward_hook(lambda module, given, found: tuple(2 * a for a in found))
    for module in (hooked, Doubled(I, H)):
        with refused("module_or_state_dict", "an nn.GRU that runs as torch's", "verify=False"):
            from_torch(module)
        assert from_torch(module, verify=False)[0] == GRU(H)


def test_a_head_of_another_size_says_what_to_do():
    module = Module(lambda m, o, h: m.fc(h[-1]))
    module.fc = nn.Linear(H, O)
    with refused("fc.weight", f"{2 * H} input features, found {H}", "interop.find"):
        from_torch(module)
