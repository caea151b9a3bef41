"""Sequence to sequence: encoder and decoder GRU, attention, greedy, sampling and beam search (docs/seq2seq.md).

`Seq2Seq` here is that of Flax Linen; `grujax.seq2seq.nnx.Seq2Seq` is that of Flax NNX.
"""

from grujax.seq2seq.attention import additive_attention, dot_attention
from grujax.seq2seq.config import CONTEXTS
from grujax.seq2seq.decode import Decoded, beam_search, greedy, sample
from grujax.seq2seq.linen import Seq2Seq
from grujax.seq2seq.model import Memory

__all__ = [
    "CONTEXTS",
    "Decoded",
    "Memory",
    "Seq2Seq",
    "additive_attention",
    "beam_search",
    "dot_attention",
    "greedy",
    "sample",
]
