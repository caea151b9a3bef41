"""Trains the same tagger in PyTorch and in grujax, with packed sequences, dropout and Adam, then exports it to ONNX.

    python torch_tagger.py                  each framework draws its own dropout masks: the loss curves are similar
    python torch_tagger.py --dropout 0      same weights, same batches: the loss curves are equal

The tag of a token depends on the token and the next one, so the tagger reads in both directions.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grujax.errors import require_package
from grujax.interop.onnx import to_onnx
from grujax.interop.torch import from_torch

torch = require_package("torch", "torch")
WORDS, TAGS, LENGTH = 12, ["noun", "verb", "other"], 20


class Tagger(torch.nn.Module):
    def __init__(self, hidden_size, dropout):
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": dropout}
        self.gru = torch.nn.GRU(WORDS, hidden_size, **options)
        self.dropout = torch.nn.Dropout(dropout)
        self.output_layer = torch.nn.Linear(2 * hidden_size, len(TAGS))

    def forward(self, x, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output = self.gru(packed)[0]
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
        return self.output_layer(self.dropout(output))


def batch(rng, rows):
    """Returns x (rows, LENGTH, WORDS), one-hot, the lengths, and the tags, −1 past the length."""
    tokens, lengths = rng.integers(0, WORDS, (rows, LENGTH + 1)), rng.integers(1, LENGTH + 1, rows)
    tags = (tokens[:, :-1] % 4 + tokens[:, 1:] % 3) % len(TAGS)
    last = np.arange(LENGTH) == lengths[:, None] - 1
    tags = np.where(last, tokens[:, :-1] % len(TAGS), tags)
    padded = np.arange(LENGTH) >= lengths[:, None]
    x = np.where(padded[..., None], 0, np.eye(WORDS)[tokens[:, :-1]]).astype(np.float32)
    return x, lengths, np.where(padded, -1, tags)


def in_torch(tagger, batches, learning_rate):
    optimizer, losses = torch.optim.Adam(tagger.parameters(), learning_rate), []
    for x, lengths, tags in batches:
        logits = tagger(torch.tensor(x), torch.tensor(lengths))
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(tags), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def in_grujax(model, variables, batches, learning_rate):
    optimizer = optax.adam(learning_rate)

    def loss(variables, x, lengths, tags, key):
        logits = model.apply(variables, x, lengths=lengths, deterministic=False, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(tags, 0))
        return losses.mean(where=tags >= 0)

    @jax.jit
    def step(variables, moments, batch, key):
        value, gradient = jax.value_and_grad(loss)(variables, *batch, key)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(variables, updates), moments, value

    moments, losses = optimizer.init(variables), []
    for number, batch in enumerate(batches):
        variables, moments, value = step(variables, moments, batch, jax.random.key(number))
        losses.append(float(value))
    return variables, losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="number of training batches")
    parser.add_argument("--hidden-size", type=int, default=32, help="units per direction")
    parser.add_argument("--dropout", type=float, default=0.2, help="dropout probability")
    parser.add_argument("--onnx", type=Path, default=Path("tagger.onnx"), help="the ONNX file to write (%(default)s)")
    options = parser.parse_args(argv)
    if min(options.steps, options.hidden_size) < 1 or not options.onnx.parent.is_dir():
        parser.error("--steps and --hidden-size must be positive, and the folder of --onnx must exist")
    _, onnxruntime = (require_package(name, "onnx") for name in ("onnx", "onnxruntime"))  # before training
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches, tagger = [batch(rng, 32) for _ in range(options.steps)], Tagger(options.hidden_size, options.dropout)
    model, variables = from_torch(tagger.state_dict(), pooling=None)
    variables, grujax_losses = in_grujax(model.clone(dropout=options.dropout), variables, batches, 1e-2)
    torch_losses = in_torch(tagger, batches, 1e-2)
    for number in range(0, options.steps, max(options.steps // 10, 1)):
        print(f"step {number:4d}: loss {torch_losses[number]:.4f} in torch, {grujax_losses[number]:.4f} in grujax")

    proto = to_onnx(model.clone(output_activation="softmax"), variables, state=False, labels=TAGS)
    options.onnx.write_bytes(proto.SerializeToString())
    print(f"wrote {options.onnx}")
    session = onnxruntime.InferenceSession(options.onnx)
    x, lengths, tags = batch(rng, 500)
    (probabilities,) = session.run(None, {"x": x, "lengths": lengths.astype(np.int32)})
    names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    found = probabilities.argmax(-1)
    right = (found == tags)[tags >= 0].mean()
    print(f"ONNX Runtime: {right:.1%} of new tags right; the first: {[names[i] for i in found[0, :5]]}")
    return torch_losses, grujax_losses, right


if __name__ == "__main__":
    main()
