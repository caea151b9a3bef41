"""Trains a GRU on all devices of all processes: a template for 8 GPUs or a slice of TPUs.

    python train.py --checkpoints /shared/run         one process; run it again to resume after any interruption
    srun python train.py --distributed ...            several processes: see train.slurm and train.yaml

The task is the adding problem (Hochreiter and Schmidhuber 1997): the two channels are values and marks, and the target
is the sum of the two marked values. Replace `rows` with your own data and `loss` with your own loss.
"""

import argparse
import contextlib
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from grujax import GRUModel
from grujax.saving.checkpoints import Checkpoints

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=2000, help="training steps in total, including those before a resume")
parser.add_argument("--batch-size", type=int, default=256, help="rows per batch on all devices together")
parser.add_argument("--length", type=int, default=100, help="steps per sequence")
parser.add_argument("--hidden-size", type=int, default=128, help="hidden units")
parser.add_argument("--every", type=int, default=100, help="training steps between checkpoints and printed lines")
parser.add_argument("--checkpoints", default="run", help="the folder of this run")
parser.add_argument(
    "--distributed", action="store_true", help="join the processes of SLURM, Open MPI, Kubernetes or a TPU pod"
)
options = parser.parse_args()
if min(options.steps, options.batch_size, options.length - 1, options.hidden_size, options.every) < 1:
    parser.error("--steps, --batch-size, --hidden-size and --every must be positive, --length must be 2 or more")
if options.distributed:
    jax.distributed.initialize()
if options.batch_size % jax.device_count():
    parser.error(f"--batch-size: expected a multiple of the {jax.device_count()} devices, found {options.batch_size}")

mesh = jax.make_mesh((jax.device_count(),), ("data",))  # all processes' devices; each runs a kernel on its rows
by_rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
model = GRUModel(options.hidden_size, 1)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def rows(step):
    """Returns this process's share of a batch. The batch depends only on the step number, so a run can resume."""
    rng, count = np.random.default_rng(step), options.batch_size // jax.process_count()
    values = rng.uniform(size=(options.batch_size, options.length)).astype(np.float32)
    marks = rng.permuted(np.broadcast_to(np.arange(options.length) < 2, values.shape), axis=1)
    mine = slice(jax.process_index() * count, (jax.process_index() + 1) * count)
    return np.stack([values, marks], -1, dtype=np.float32)[mine], (values * marks).sum(1)[mine]


def loss(params, x, y):
    return jnp.mean((model.apply({"params": params}, x)[:, 0] - y) ** 2)


def step(state, x, y):
    params, moments = state
    value, gradient = jax.value_and_grad(loss)(params, x, y)
    updates, moments = optimizer.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), value


params = model.init(jax.random.key(0), jnp.zeros((1, 1, 2)))["params"]
state = jax.device_put((params, optimizer.init(params)), whole)
step = jax.jit(step, donate_argnums=0, out_shardings=(whole, whole))
settings = {"hidden_size": options.hidden_size, "length": options.length}
with contextlib.closing(Checkpoints(options.checkpoints, settings)) as checkpoints:
    restored = checkpoints.restore(state)
    first, state = (0, state) if restored is None else (restored.step, restored.tree)
    if first >= options.steps and jax.process_index() == 0:
        print(f"already at step {first}; pass a larger --steps to continue")
    start = time.perf_counter()
    for number in range(first, options.steps):
        x, y = (jax.make_array_from_process_local_data(by_rows, a) for a in rows(number))
        state, value = step(state, x, y)
        if (number + 1) % options.every == 0 or number + 1 == options.steps:
            seconds, start = time.perf_counter() - start, time.perf_counter()
            per_second = ((number % options.every) + 1) * options.batch_size / seconds
            if jax.process_index() == 0:
                line = {"step": number + 1, "loss": float(value), "sequences_per_second": round(per_second)}
                print(json.dumps(line), flush=True)
            checkpoints.save(number + 1, state, {})
