"""A speech denoiser that runs frame by frame: log spectrum, two GRU layers, a mask for the spectrum (Valin 2018).

The speech is synthetic, a sum of harmonics with two formants and syllables; the noise is coloured. A frame is 16 ms at
16 kHz. `--onnx denoiser.onnx` also exports one step, state as input and output, and streams with it in ONNX Runtime.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grujax import GRUModel
from grujax.errors import require_package
from grujax.interop.onnx import to_onnx

RATE, WINDOW, HOP = 16000, 512, 256
BINS = WINDOW // 2 + 1
SHAPE = np.sqrt(np.hanning(WINDOW + 1)[:-1]).astype(np.float32)  # the squares of overlapping windows add up to 1


def speech(key, n):
    """Returns (n,) samples: 24 harmonics of a gliding pitch, weighted by two formants, about 4 syllables per second."""
    keys, t, harmonics = jax.random.split(key, 3), jnp.arange(n) / RATE, jnp.arange(1, 25)[:, None]
    pitch = jax.random.uniform(keys[0], minval=90, maxval=250)
    phase = 2 * jnp.pi * pitch * (t + 0.03 * jnp.sin(2 * jnp.pi * t))
    formants = jnp.array([300.0, 1000.0]) + jax.random.uniform(keys[1], (2,)) * jnp.array([600.0, 1800.0])
    weights = 0.05 + jnp.exp(-jnp.square((harmonics * pitch - formants) / 250)).sum(1, keepdims=True)
    first, rate = jax.random.uniform(keys[2], (2,))
    loudness = jnp.sqrt(jnp.maximum(jnp.sin(2 * jnp.pi * ((3 + 3 * rate) * t + first)), 0))
    return loudness * (weights * jnp.sin(harmonics * phase)).sum(0)


def example(key, n, snr):
    """Returns speech of variance 1, and the same speech in coloured noise at `snr` dB."""
    keys = jax.random.split(key, 3)
    clean, white = speech(keys[0], n), jax.random.normal(keys[1], (n + 1,))
    noise = white[1:] + jax.random.uniform(keys[2], (), minval=-0.9, maxval=0.9) * white[:-1]
    clean, noise = (a / a.std() for a in (clean, noise))
    return clean, clean + 10 ** (-snr / 20) * noise


def spectra(signals):
    """Returns the spectra of (..., n) signals: (..., T, BINS). The first frame begins with HOP zeros."""
    padded = jnp.pad(signals, [(0, 0)] * (signals.ndim - 1) + [(HOP, 0)])
    starts = jnp.arange(signals.shape[-1] // HOP) * HOP
    return jnp.fft.rfft(padded[..., starts[:, None] + jnp.arange(WINDOW)] * SHAPE)


def features(spectrum, np=jnp):
    return (np.log(np.abs(spectrum) + 1e-2) / 2).astype("float32")


def train(model, key, steps, rows, n, snr):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, steps)))

    def loss(variables, key):
        target, mixed = map(spectra, jax.vmap(lambda key: example(key, n, snr))(jax.random.split(key, rows)))
        error = model.apply(variables, features(mixed)) * mixed - target
        return jnp.square(jnp.abs(error)).mean() / jnp.square(jnp.abs(target)).mean()

    def step(state, key):
        updates, moments = optimizer.update(jax.grad(loss)(state[0], key), state[1])
        return (optax.apply_updates(state[0], updates), moments), None

    variables = model.init(key, jnp.zeros((1, 1, BINS)))
    return jax.lax.scan(step, (variables, optimizer.init(variables)), jax.random.split(key, steps))[0][0]


def stream(step, h, signal):
    """Denoises block by block, HOP samples late; also returns the seconds of each. step: (x, h) -> (mask, h)."""
    frame, output, blocks, seconds = np.zeros(WINDOW, np.float32), np.zeros(WINDOW, np.float32), [], []
    for block in signal.reshape(-1, HOP):
        start = time.perf_counter()
        frame = np.concatenate([frame[HOP:], block])
        spectrum = np.fft.rfft(frame * SHAPE)
        mask, h = step(features(spectrum, np)[None, None], h)
        output = np.concatenate([output[HOP:], np.zeros(HOP)]) + np.fft.irfft(np.asarray(mask)[0, 0] * spectrum) * SHAPE
        blocks.append(output[:HOP])
        seconds.append(time.perf_counter() - start)
    return np.concatenate(blocks), np.array(seconds)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"hidden-size": 128, "steps": 300, "rows": 16, "seconds": 1.0, "snr": 0.0}
    meanings = "units per layer", "batches", "signals per batch", "length of a signal", "dB of the noisy speech"
    for (name, default), meaning in zip(sizes.items(), meanings, strict=True):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{meaning} (%(default)s)")
    parser.add_argument("--onnx", type=Path, help="the file to export one step to (extra `onnx`)")
    options = parser.parse_args(argv)
    size, sizes = options.hidden_size, (options.steps, options.rows, int(options.seconds * RATE), options.snr)
    if min(size, *sizes[:2], sizes[2] // HOP) < 1 or not (options.onnx or Path()).parent.is_dir():
        parser.error(f"sizes must be positive, --seconds {HOP / RATE} or more, and the folder of --onnx must exist")
    if options.onnx:
        _, onnxruntime = (require_package(name, "onnx") for name in ("onnx", "onnxruntime"))  # before training
    model = GRUModel(size, BINS, num_layers=2, pooling=None, output_activation="sigmoid")
    variables = jax.jit(lambda key: train(model, key, *sizes))(jax.random.key(0))
    clean, noisy = map(np.asarray, example(jax.random.key(1), 8 * RATE, options.snr))
    steps = {"jax": jax.jit(lambda x, h: model.apply(variables, x, h, return_state=True))}
    if options.onnx:
        options.onnx.write_bytes(to_onnx(model, variables, lengths=False).SerializeToString())
        print(f"wrote {options.onnx}")
        session = onnxruntime.InferenceSession(options.onnx)
        steps["onnxruntime"] = lambda x, h: session.run(None, {"x": x, "h0": h})
    h, denoised = np.zeros((2, 1, size), np.float32), {}
    steps["jax"](np.zeros((1, 1, BINS), np.float32), h)  # compiles
    for name, step in steps.items():
        denoised[name], seconds = stream(step, h, noisy)
        gain = 10 * np.log10(np.square(noisy - clean).mean() / np.square(denoised[name][HOP:] - clean[:-HOP]).mean())
        print(f"{name}: {gain:+.1f} dB; a frame of {1000 * HOP / RATE:.0f} ms takes {1000 * np.median(seconds):.2f} ms")
    return model, variables, noisy, denoised


if __name__ == "__main__":
    main()
