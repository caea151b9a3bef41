"""Values and gradients on eight devices equal those on one device, for each way to shard.

The devices need a process of their own: run as a program, this file prints the failure of each case.
"""

import contextlib
import json
import os
import subprocess
import sys
import traceback

import numerics  # noqa: F401
import pytest
from implementations import HERE

MESHES = {
    "shard_map": {"data": (8, "Auto")},
    "explicit": {"data": (8, "Explicit")},
    "data": {"data": (8, "Auto")},
    "model": {"model": (2, "Auto")},
    "data and model": {"data": (4, "Auto"), "model": (2, "Auto")},
    "explicit data, model": {"data": (4, "Explicit"), "model": (2, "Auto")},
    "explicit model": {"model": (2, "Explicit")},
}
"""The axes of the mesh for each way to shard: rows are split over "data", hidden units over "model"."""

WAYS = (
    ("shard_map", ("gru", "whole", "GRU", "GRUModel"), ("native", "xla")),
    ("shard_map", ("gru",), ("autodiff",)),
    ("explicit", ("gru", "GRU", "GRUModel"), ("native", "xla")),
    ("explicit", ("GRU",), ("autodiff",)),
    ("explicit", ("whole",), ("native",)),
    ("explicit", ("whole",), ("xla",)),
    ("explicit", ("dropout",), ("native", "xla")),
    ("explicit", ("GRU",), ("reference",)),
    ("data", ("GRUModel",), ("native", "xla")),
    ("model", ("gru",), ("native", "xla")),
    ("data and model", ("gru", "GRU", "GRUModel"), ("native", "xla")),
    ("explicit data, model", ("GRUModel",), ("native", "xla")),
    ("explicit model", ("gru", "GRU"), ("native", "xla", "autodiff")),
    ("explicit model", ("dropout",), ("native",)),  # the default kernel
)


HELD = {("data and model", "gru"), ("data and model", "GRU"), ("explicit model", "GRU"), ("data", "GRUModel")}
HELD |= {("shard_map", "GRUModel"), ("explicit", "gru"), ("data and model", "GRUModel")}
"""Cases that others contain. GRUModel contains a GRU, which is `gru` twice, and "dropout" contains two layers.
"data and model" contains "data", and "explicit data, model" is a mesh of both too.
In shard_map a device sees only its own rows, whatever follows the layer."""


def cases(every):
    """Yields (way, model, implementation): all, or without HELD, where implementations alternate over models."""
    for way, models, named in WAYS:
        implementations = [name for name in named if name in (*HERE, "reference")]
        for i, model in enumerate(models):
            for j, implementation in enumerate(implementations):
                if every or ((i + j) % len(implementations) == 0 and (way, model) not in HELD):
                    yield way, model, implementation


@pytest.mark.parametrize("every", ["", pytest.param("every", marks=pytest.mark.slow)], ids=["by turns", "all"])
def test_eight_devices_give_what_one_gives(every):
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-W", "error", __file__, every]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    failures = json.loads(done.stdout.splitlines()[-1])
    assert len(failures) == len([*cases(every)])
    failed = {case: why for case, why in failures.items() if why}
    assert not failed, "\n\n".join(f"{case}: {why}" for case, why in failed.items())


def main(every):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from grujax import GRU, GRUModel, GRUWeights, gru
    from grujax.kernels import entry
    from grujax.testing import assert_trees_close
    from grujax.types import Recurrence

    rows, steps, features, hidden = 8, 5, 3, 4
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    data = {
        "x": normal(rows, steps, features),
        "h0": normal(rows, hidden),
        "lengths": jnp.asarray([5, 0, 2, 3, 5, 1, 4, 5]),
        "resets": jnp.asarray(rng.uniform(size=(rows, steps)) < 0.3),
    }
    shapes = [(features, 3 * hidden), (hidden, 3 * hidden), (3 * hidden,), (3 * hidden,)]
    bare = {"weights": GRUWeights(*(normal(*shape) for shape in shapes)), "h_reset": normal(hidden)}
    options = {"bidirectional": True, "initial_state": "learned", "param_dtype": jnp.float64}
    layer = GRU(hidden, num_layers=2 if every else 1, **options)  # two layers are in "dropout" too
    model = GRUModel(hidden, 2, pooling="attention", **options)

    def random(module):
        return jax.tree.map(lambda a: normal(*a.shape), jax.eval_shape(module.init, jax.random.key(0), data["x"]))

    rates = ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout", "zoneout")
    dropped = GRUModel(hidden, 2, num_layers=2, blocks=2, **dict.fromkeys(rates, 0.3), param_dtype=jnp.float64)
    parameters = {
        "gru": bare,
        "whole": bare,
        "GRU": random(layer),
        "GRUModel": random(model),
        "dropout": random(dropped),
    }
    # how the rows of the two results, output and last state, are split
    results = {"gru": (P("data"), P("data")), "GRU": (P("data"), P(None, "data")), "GRUModel": (P("data"), P("data"))}
    results |= {"dropout": results["GRU"], "whole": results["gru"]}

    def forward(name, implementation):
        def run(p, d):
            given = {"lengths": d["lengths"], "resets": d["resets"]}
            if name == "whole":  # without lengths and resets
                return gru(d["x"], p["weights"], d["h0"], implementation=implementation)
            if name == "gru":
                return gru(d["x"], p["weights"], d["h0"], h_reset=p["h_reset"], implementation=implementation, **given)
            if name == "dropout":
                rngs = {"dropout": jax.random.key(2)}
                return dropped.apply(p, d["x"], return_state=True, deterministic=False, rngs=rngs)
            if name == "GRU":
                return layer.copy(implementation=implementation).apply(p, d["x"], **given)
            y, h_last = model.copy(implementation=implementation).apply(
                p, d["x"], lengths=d["lengths"], return_state=True
            )
            return y, jnp.moveaxis(h_last, 0, 1)

        return run

    def differentiate(run):
        """Compiles `run` with the gradients of a function of its results with respect to the parameters and x."""

        def loss(p, x, d):
            found = run(p, d | {"x": x})
            return sum(jnp.sin(a).sum() for a in found), found

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    expected = {name: differentiate(forward(name, "xla"))(p, data["x"], data) for name, p in parameters.items()}
    for gradient in jax.tree.leaves([g for name, (_, g) in expected.items() if name != "whole"]):
        assert gradient.any(), "a gradient of zero proves nothing"

    def columns(mesh, a):
        """Splits the hidden units of a weight, or of its blocks, over "model"; other arrays are on every device."""
        model = "model" in mesh.axis_names and a.shape[-1] in (3 * hidden, 3 * hidden // 2)
        return NamedSharding(mesh, P(*[None] * (a.ndim - 1), "model") if model else P())

    def check(way, name, implementation):
        axes = MESHES[way]
        sizes, kinds = zip(*axes.values(), strict=True)
        mesh = jax.make_mesh(sizes, tuple(axes), axis_types=tuple(getattr(AxisType, kind) for kind in kinds))
        run, p, d = forward(name, implementation), parameters[name], data
        if way == "shard_map":
            run = jax.shard_map(run, mesh=mesh, in_specs=(P(), P("data")), out_specs=results[name])
        else:
            p = jax.tree.map(lambda a: jax.device_put(a, columns(mesh, a)), p)
            batch = P("data") if "data" in axes else P()
            d = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, batch)), d)
        by_xla = way != "shard_map" and ("Auto" in kinds or "data" not in axes)
        split = implementation == "native" and by_xla
        told = pytest.warns(UserWarning, match="xla. runs in place of 'native'") if split else contextlib.nullcontext()
        with told as caught, jax.set_mesh(mesh) if "Explicit" in kinds else contextlib.nullcontext():
            found, alone = differentiate(run)(p, d["x"], d), jax.jit(run)(p, d) if name == "whole" else None
        assert {warning.filename for warning in caught or ()} <= {__file__}, "it points at the user's line"
        assert_trees_close(found, expected[name], "gradient")
        if alone is not None:
            assert_trees_close(alone, found[0][1])
        if way == "explicit" and name == "gru":
            of_device = jax.jit(lambda x: entry._known_sizes(Recurrence(x, p["weights"]), time_major=False)[1])
            with jax.set_mesh(mesh):
                assert of_device(d["x"]) == 1, "the kernel is chosen by the rows of a device"
        (_, outputs), (dp, dx) = found
        if "data" in axes:
            for a, spec in zip(outputs, results[name], strict=True):
                assert tuple(a.sharding.spec)[: len(spec)] == tuple(spec), f"a result is sharded {a.sharding.spec}"
            assert tuple(dx.sharding.spec)[:1] == ("data",), f"dx is sharded {dx.sharding.spec}"
        if way == "explicit":  # otherwise XLA chooses the sharding
            for a, da in zip(jax.tree.leaves(p), jax.tree.leaves(dp), strict=True):
                assert da.sharding.is_equivalent_to(a.sharding, a.ndim), f"{a.sharding.spec} -> {da.sharding.spec}"

    failures = {}
    for case in cases(every):
        try:
            check(*case)
            failures["-".join(case)] = ""
        except Exception:
            failures["-".join(case)] = traceback.format_exc(limit=-8)
    print(json.dumps(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
