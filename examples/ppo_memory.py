"""Recurrent PPO (Schulman et al. 2017) on a memory task: rollouts, resets and updates are one compiled program.
With `--rnn flax` the agent is the usual `nn.scan` over Flax's cell. The task is Repeat Previous (POPGym, Morad et al.
2023): each step shows one of 4 symbols, and the agent names the one 4 steps ago. Returns are −1 to 1; guessing: −0.5.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from grujax import GRUModel

SYMBOLS, DELAY, EPISODE = 4, 4, 32
DISCOUNT, TRACE, CLIP, ENTROPY, EPOCHS, MINIBATCHES = 0.9, 0.9, 0.2, 0.01, 4, 8
HEADS = {"policy": SYMBOLS, "value": 1}


class FlaxAgent(nn.Module):
    @nn.compact
    def __call__(self, x, h, *, resets, return_state):  # like that of `GRUModel`
        step = lambda cell, h, at: cell(jnp.where(at[1][:, None], 0, h), at[0])  # noqa: E731
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        h, hs = scan(nn.GRUCell(h.shape[-1]), h[0], (x, resets))
        return {name: nn.Dense(size)(hs) for name, size in HEADS.items()}, h[None]


def rollout(agent, params, key, env, h, steps):
    """env, which resets itself: the last symbols (N, DELAY + 1), newest first, and the age of each episode (N,)."""

    def step(carry, key):
        (past, age), h = carry
        x, resets, keys = jax.nn.one_hot(past[:, 0], SYMBOLS), age == 0, jax.random.split(key)
        out, h_next = agent.apply(params, x[None], h, resets=resets[None], return_state=True)
        action = jax.random.categorical(keys[0], out["policy"][0])
        reward = jnp.where(action == past[:, -1], 1.0, -1.0) * (age >= DELAY) / (EPISODE - DELAY)
        new = jax.random.randint(keys[1], (len(past), 1), 0, SYMBOLS)
        env = jnp.concatenate([new, past[:, :-1]], 1), (age + 1) % EPISODE
        record = {"x": x, "resets": resets, "h": h[0], "policy": out["policy"][0], "value": out["value"][0, :, 0]}
        return (env, h_next), record | {"action": action, "reward": reward}

    return jax.lax.scan(step, (env, h), jax.random.split(key, steps))


def advantages(steps):
    """Generalised advantage estimation (Schulman et al. 2016) for all steps but the last, whose value ends the sum."""
    discount = DISCOUNT * (1 - steps["resets"][1:])
    delta = steps["reward"][:-1] + discount * steps["value"][1:] - steps["value"][:-1]
    pairs = TRACE * discount, delta  # the sum is the linear recurrence A_t = delta_t + TRACE discount_t A_{t+1}
    return jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), pairs, reverse=True)[1]


def loss(params, agent, burn_in, rows, batch):
    """PPO's loss on whole trajectories. Burn-in steps only update the stored first state to the current parameters."""
    batch = jax.tree.map(lambda a: a[:, rows], batch)
    out, _ = agent.apply(params, batch["x"], batch["h"][:1], resets=batch["resets"], return_state=True)
    out, batch = jax.tree.map(lambda a: a[burn_in:], (out, batch))
    logits, advantage = out["policy"], batch["advantage"]
    old, new = (optax.softmax_cross_entropy_with_integer_labels(p, batch["action"]) for p in (batch["policy"], logits))
    ratio = jnp.exp(old - new)
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = -jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * scaled).mean()
    value = jnp.square(out["value"][..., 0] - batch["value"] - advantage).mean()
    return policy + value / 2 - ENTROPY * optax.softmax_cross_entropy(logits, jax.nn.softmax(logits)).mean()


def train(agent, key, envs, steps, burn_in, updates, hidden_size):
    """Runs all updates in one scan. Returns the mean return of the episodes, (updates,)."""
    optimizer, gradient = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3)), jax.grad(loss)

    def update(carry, key):
        (params, moments), env, h, before, keys = *carry, jax.random.split(key, 1 + EPOCHS)
        (env, h), new = rollout(agent, params, keys[0], env, h, steps)
        records = jax.tree.map(lambda *a: jnp.concatenate(a), before, new)
        batch = jax.tree.map(lambda a: a[:-1], records) | {"advantage": advantages(records)}

        def minibatch(learner, rows):
            changes, moments = optimizer.update(gradient(learner[0], agent, burn_in, rows, batch), learner[1])
            return (optax.apply_updates(learner[0], changes), moments), None

        rows = jnp.stack([jax.random.permutation(key, envs) for key in keys[1:]]).reshape(EPOCHS * MINIBATCHES, -1)
        learner, _ = jax.lax.scan(minibatch, (params, moments), rows)
        before = jax.tree.map(lambda a: a[steps:], records)  # burn-in, and the step without a next value
        return (learner, env, h, before), new["reward"].sum() / new["resets"].sum()

    keys, h = jax.random.split(key, 4), jnp.zeros((1, envs, hidden_size))
    env = jax.random.randint(keys[0], (envs, DELAY + 1), 0, SYMBOLS), jnp.arange(envs) % EPISODE
    params = agent.init(keys[1], jnp.zeros((1, 1, SYMBOLS)), h[:, :1], resets=jnp.ones((1, 1), bool), return_state=True)
    (env, h), before = rollout(agent, params, keys[2], env, h, burn_in + 1)
    carry = (params, optimizer.init(params)), env, h, before
    return jax.lax.scan(update, carry, jax.random.split(keys[3], updates))[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rnn", choices=["grujax", "flax"], default="grujax", help="the GRU of the agent")
    sizes = {"envs": 256, "steps": 32, "burn-in": 8, "updates": 100, "hidden-size": 128}
    meanings = "environments", "steps per rollout", "steps before those of the loss", "rollouts", "hidden units"
    for (name, default), meaning in zip(sizes.items(), meanings, strict=True):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (%(default)s)")
    sizes = vars(parser.parse_args(argv))
    rnn, key = sizes.pop("rnn"), jax.random.key(0)
    fit = sizes["envs"] % MINIBATCHES == 0 and sizes["envs"] + sizes["steps"] > EPISODE  # each rollout ends an episode
    if not fit or min((sizes | {"burn_in": sizes["burn_in"] + 1}).values()) < 1:
        parser.error(f"--envs must be a multiple of {MINIBATCHES}, --envs + --steps > {EPISODE}, all sizes positive")
    ours = GRUModel(sizes["hidden_size"], HEADS, pooling=None, time_major=True, initializer="flax")
    compiled = jax.jit(lambda key: train(ours if rnn == "grujax" else FlaxAgent(), key, **sizes)).lower(key).compile()
    start = time.perf_counter()
    returns = compiled(key).block_until_ready()
    rate = sizes["updates"] * sizes["envs"] * sizes["steps"] / (time.perf_counter() - start)
    print("return, from first to last update:", *(f"{r:+.2f}" for r in returns[:: max(len(returns) // 10, 1)]))
    print(f"{rnn}: return {returns[-5:].mean():+.2f}, {rate:,.0f} frames per second")
    return returns


if __name__ == "__main__":
    main()
