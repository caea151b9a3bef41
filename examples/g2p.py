"""Converts words to phonemes with the published weights of g2p-en in a `grujax.seq2seq.Seq2Seq`.

    pip install --no-deps g2p-en
    python examples/g2p.py activationist gated

The package (Park and Kim, Apache-2.0) has a GRU encoder and decoder in NumPy. It looks words up in a dictionary and
uses the network only for words that it does not find. This example runs the network for all words, in one batch.
"""

import argparse
import re
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grujax.interop.torch import from_torch
from grujax.seq2seq import Seq2Seq, greedy

GRAPHEMES = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
SOUNDS = """
<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 EH2 ER0
ER1 ER2 EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW
UW0 UW1 UW2 V W Y Z ZH
"""
PHONEMES = SOUNDS.split()
START, END, LONGEST = PHONEMES.index("<s>"), PHONEMES.index("</s>"), 20


def load() -> tuple[Seq2Seq, dict]:
    """Loads the model and its variables. The GRU weights are torch's with other names, so `from_torch` reads them."""
    found = find_spec("g2p_en")
    if found is None or found.origin is None:
        raise SystemExit("g2p_en is required: pip install --no-deps g2p-en")
    with np.load(Path(found.origin).parent / "checkpoint20.npz", allow_pickle=False) as file:
        arrays = dict(file)
    names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    encoder, decoder = (
        from_torch({key: arrays[f"{which}_{name}"] for key, name in names.items()}) for which in ("enc", "dec")
    )
    params = {
        "source_embedding": arrays["enc_emb"],
        "encoder": encoder[1]["params"],
        "target_embedding": arrays["dec_emb"],
        "decoder": decoder[1]["params"],
        "logits": {"kernel": arrays["fc_w"].T, "bias": arrays["fc_b"]},
    }
    sizes = {"source_vocabulary": len(GRAPHEMES), "target_vocabulary": len(PHONEMES)}
    model = Seq2Seq(encoder[0].hidden_size, **sizes, context=None)
    return model, {"params": jax.tree.map(jnp.asarray, params)}


def phonemes(words: list[str]) -> list[list[str]]:
    """Returns the network's phonemes for each word, which is in lower case."""
    model, variables = load()
    lengths = np.array([len(word) + 1 for word in words])
    source = np.zeros((len(words), lengths.max()), np.int32)
    index = {letter: i for i, letter in enumerate(GRAPHEMES)}
    for row, word in zip(source, words, strict=True):
        row[: len(word) + 1] = [index.get(letter, 1) for letter in [*word, "</s>"]]

    @jax.jit
    def translate(source, lengths):
        memory, state = model.apply(variables, source, source_lengths=lengths, method="encode")
        step = lambda state, token: model.apply(variables, memory, state, token, method="step")  # noqa: E731
        return greedy(step, state, START, end=END, max_length=LONGEST)

    decoded = translate(source, lengths)
    rows = zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True)
    return [[PHONEMES[token] for token in tokens[:n]] for tokens, n in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["activationist", "gated", "recurrent", "unit"]
    parser.add_argument("words", nargs="*", default=default, help="words of lower-case letters a to z")
    words = parser.parse_args().words
    if refused := [word for word in words if not re.fullmatch("[a-z]+", word)]:
        parser.error(f"words: expected only letters a to z, found {refused}")
    for word, sounds in zip(words, phonemes(words), strict=True):
        print(f"{word}: {' '.join(sounds)}")
