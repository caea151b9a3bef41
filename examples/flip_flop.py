"""Analyses a trained GRU as in Sussillo and Barak (2013): the 3-bit flip-flop and its fixed points.

    python flip_flop.py --pictures flip_flop      writes flip_flop/states.png, eigenvalues.png and time_scale.png

Each of three channels has occasional pulses of +1 or −1, and each output is the last pulse of its channel. The network
remembers three bits in eight stable fixed points, one for each combination.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grujax import GRUModel, inspect
from grujax.errors import require_package

BITS = 3
ROWS, LENGTH = 64, 100  # of the batch whose states are analysed
SIZES = [
    ("hidden-size", 24, "hidden units"),
    ("steps", 1500, "number of training batches"),
    ("rows", 64, "sequences per batch"),
    ("length", 64, "steps per sequence"),
    ("starts", 400, f"states from which fixed points are searched, at most {ROWS * LENGTH}"),
    ("seed", 0, "seed of all random numbers"),
]


def batch(key, rows, length):
    """Returns x (rows, length, BITS), pulses, and y, the last pulse of each channel, 0 before the first."""
    pulses = jax.random.choice(key, jnp.array([-1.0, 0.0, 1.0]), (rows, length, BITS), p=jnp.array([0.05, 0.9, 0.05]))
    last = jax.lax.associative_scan(lambda a, b: jnp.where(b == 0, a, b), pulses, axis=1)
    return pulses, last


def train(model, key, steps, rows, length):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, steps)))

    def loss(variables, key):
        x, y = batch(key, rows, length)
        return jnp.square(model.apply(variables, x) - y).mean()

    def step(state, key):
        variables, moments = state
        value, gradient = jax.value_and_grad(loss)(variables, key)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(variables, updates), moments), value

    keys = jax.random.split(key, steps + 1)
    variables = model.init(keys[0], batch(keys[0], 1, 1)[0])
    (variables, _), losses = jax.lax.scan(step, (variables, optimizer.init(variables)), keys[1:])
    return variables, losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in SIZES:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (%(default)s)")
    parser.add_argument("--pictures", type=Path, help="folder for the plots; without it none are drawn")
    options = parser.parse_args(argv)
    if min(options.hidden_size, options.steps, options.rows, options.length, options.starts) < 1:
        parser.error("--hidden-size, --steps, --rows, --length and --starts must be positive")
    if options.starts > ROWS * LENGTH:
        parser.error(f"--starts: expected at most {ROWS * LENGTH}, found {options.starts}")
    if options.pictures:
        require_package("matplotlib", "plot")
        options.pictures.mkdir(parents=True, exist_ok=True)
    model, key = GRUModel(options.hidden_size, BITS, pooling=None), jax.random.key(options.seed)
    training = jax.jit(lambda key: train(model, key, options.steps, options.rows, options.length))
    variables, losses = training(key)
    x, y = batch(jax.random.key(options.seed + 1), ROWS, LENGTH)
    right = (jnp.sign(model.apply(variables, x)) == y)[y != 0].mean()
    print(f"loss {losses[-1]:.4f} after {options.steps} steps, {right:.1%} of bits right")

    states = inspect.states(model, variables, x)
    starts = np.random.default_rng(options.seed).choice(states.reshape(-1, options.hidden_size), options.starts, False)
    fixed = inspect.fixed_points(model, variables, np.zeros(BITS, np.float32), starts)
    head = variables["params"]["head"]
    corners = np.sign(fixed.points @ head["kernel"] + head["bias"])[fixed.stable]
    slowest = inspect.time_constants(fixed.eigenvalues[fixed.stable][:, 0])
    gates = inspect.gates(model, variables, x)
    units = inspect.time_scale(gates["l0"])
    shares = inspect.principal_components(states).shares
    print(f"{fixed.stable.sum()} stable fixed points for {len(np.unique(corners, axis=0))} combinations of bits")
    print(f"{(~fixed.stable).sum()} unstable fixed points between them")
    print(f"slowest mode of a stable point: {np.median(slowest):.1f} steps; single unit: {np.median(units):.1f} steps")
    print(f"{shares[:3].sum():.0%} of the variance in {BITS} components")
    if options.pictures:
        inspect.plot_states(states, fixed, options.pictures / "states.png")
        inspect.plot_eigenvalues(fixed.eigenvalues[fixed.stable], options.pictures / "eigenvalues.png")
        inspect.plot_time_scale(units, options.pictures / "time_scale.png")
        print(f"wrote states.png, eigenvalues.png and time_scale.png in {options.pictures}")
    return fixed, corners


if __name__ == "__main__":
    main()
