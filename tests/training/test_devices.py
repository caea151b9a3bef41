"""Training on eight devices equals training on one, up to rounding, and a run resumes on another number of devices.

Eight devices need a separate process, which runs this file as a program.
"""

import dataclasses
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace
from unittest import mock

import numerics  # noqa: F401


def test_eight_devices_train_as_one(tmp_path):
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout == "equal\n", done.stderr


def main(folder):
    import jax
    import numpy as np
    import pytest
    from jax.sharding import AxisType, Mesh
    from levels import DATA, SMALL

    from grujax import InputError
    from grujax.kernels import native
    from grujax.training import fit, loop

    jax.config.update("jax_numpy_dtype_promotion", "standard")
    config = dataclasses.replace(SMALL, epochs=4, dropout=0.5)
    programs, lower = [], loop.train_steps.lower

    def noting(*arguments):
        programs.append(lower(*arguments))
        return programs[-1]

    with mock.patch.object(loop, "train_steps", SimpleNamespace(lower=noting)):
        with jax.set_mesh(jax.make_mesh((8,), ("mine",))):  # a mesh of the user that `fit` was not given
            one = fit(config, DATA)
        explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
        eight = fit(config, DATA, mesh=explicit)
    texts = [program.as_text() for program in programs]
    assert ["num_partitions = 8" in text for text in texts] == [False, True]
    for text in texts:
        calls = ["@grujax_forward" in text, "@grujax_backward" in text]
        assert calls == [native.status()[0] is not None] * 2, "each device runs the kernel that one would run"

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    flat = Mesh(np.array(jax.devices()).reshape(8, 1), ("data", "model"))
    with jax.set_mesh(jax.make_mesh((8,), ("mine",))), warnings.catch_warnings():
        warnings.simplefilter("error")  # if XLA split the rows itself, the plain loop would run with a warning
        ended = fit(config, DATA, mesh=flat, checkpoints=folder, on_epoch=stop)
    for leaf in jax.tree.leaves((eight.variables, ended.variables)):
        assert len(leaf.sharding.device_set) == 1, "the device that evaluates runs a kernel of its own too"
    resumed = fit(config, DATA, checkpoints=folder)
    assert len(jax.tree.leaves(resumed.variables)[0].sharding.device_set) == 1
    wide = fit(config, DATA, mesh=Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model")))
    w = wide.variables["params"]["encoder"]["gru"]["l0"]["w_hh"]
    assert {shard.data.shape for shard in w.addressable_shards} == {(8, 12)}
    for other in (eight, resumed, wide):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), other.variables, one.variables
        )
        losses = [[epoch.loss for epoch in run.history] for run in (other, one)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    config = dataclasses.replace(config, epochs=1, members=2)
    several = [fit(config, DATA, mesh=mesh).history[0].loss for mesh in (None, mesh)]
    np.testing.assert_allclose(*several, rtol=1e-4)
    with pytest.raises(InputError, match=r"^batch_size=12 needs a number of devices that divides it"):
        fit(dataclasses.replace(config, batch_size=12), DATA, mesh=mesh)
    with pytest.raises(InputError, match=r"^3 \* hidden_size=24 needs a number of devices that divides it"):
        fit(config, DATA, mesh=Mesh(np.array(jax.devices()[:5]).reshape(1, 5), ("data", "model")))
    with pytest.raises(InputError, match=r"^mesh: expected one axis"):
        fit(config, DATA, mesh=Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("a", "b", "c")))
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
