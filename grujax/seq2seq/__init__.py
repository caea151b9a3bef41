"""Sequence to sequence: GRU encoder and decoder, attention, and decoding by greedy, sampling or beam search.

docs/seq2seq.md is the guide. `grujax.seq2seq.Seq2Seq` is the Flax Linen module, `grujax.seq2seq.nnx.Seq2Seq` the Flax
NNX module.
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
