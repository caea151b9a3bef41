"""Sequence to sequence as a Flax Linen module."""

from collections.abc import Mapping
from typing import Any, Never

import flax.linen as nn
from jax.typing import ArrayLike, DTypeLike

from grujax.core.functional import noise_of
from grujax.core.keywords import explained, refuse_others
from grujax.linen.cell import declared
from grujax.linen.layer import key_of
from grujax.seq2seq import model
from grujax.types import Array


@explained
class Seq2Seq(model.Decoding, nn.Module):
    """A GRU encoder and a GRU decoder over tokens. Attributes: those of `Seq2SeqConfig` and `CellConfig`.

    The equations are in `grujax.seq2seq.model`. A call trains: the decoder reads the target itself (teacher forcing).
    `encode` and `step` decode: with `grujax.seq2seq.greedy`, `sample` and `beam_search`.

    Parameters: `encoder` and `decoder` as `GRU` has them, `source_embedding` and `target_embedding` (V, E), `logits`,
    and where the context asks for them `start`, `summary`, `attention` and `readout`.

    >>> import jax, jax.numpy as jnp
    >>> translator = Seq2Seq(20, source_vocabulary=30, target_vocabulary=40, context="luong")
    >>> source, target = jnp.ones((3, 7), int), jnp.ones((3, 5), int)
    >>> variables = translator.init(jax.random.key(0), source, target)
    >>> translator.apply(variables, source, target, source_lengths=jnp.array([7, 4, 2])).shape
    (3, 5, 40)
    """

    def __call__(
        self,
        source: ArrayLike,
        target: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        sampling_rate: ArrayLike | None = None,
        deterministic: bool = True,
        **others: Never,
    ) -> Array:
        """The logits of every next token, where the decoder reads `target`.

        Args:
          source: tokens (B, S).
          target: tokens (B, T) that the decoder reads, the start token first. The logits at t are those of token t + 1:
            the loss compares those of `target[:, :-1]` with `target[:, 1:]`.
          source_lengths, target_lengths: integers (B,), how many tokens are valid; all where None.
          sampling_rate: the share of target tokens in whose place the decoder reads what it drew itself from the logits
            before (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099); rng stream "sampling". None: teacher
            forcing, in which the decoder runs over all steps at once, except with context="bahdanau".
          deterministic: False switches dropout on; rng stream "dropout".

        Returns:
          (B, T, target_vocabulary), exactly 0 at steps that are not valid, in the compute dtype.

        Raises:
          InputError: a field, shape, dtype, token or length that cannot be served.
          TypeError: a keyword that is none of these; it names ours.
        """
        refuse_others(self, others)
        self.check()
        noise = None if deterministic else noise_of(lambda: key_of(self, "dropout"))
        sampling = None if sampling_rate is None else (sampling_rate, key_of(self, "sampling"))
        lengths = source_lengths, target_lengths
        return model.forced(self, self.weights(), source, target, *lengths, noise, sampling)[0]

    # in the class itself: Flax then names them in profiles and keeps their intermediates, and the reference shows them
    align, encode, step = model.Decoding.align, model.Decoding.encode, model.Decoding.step

    @nn.compact
    def weights(self) -> dict[str, Any]:
        """Declares the parameters and returns them."""
        return _declared(self, self.parameter_table(), self.param_dtype)


class _Table(nn.Module):
    """The parameters of a table below that of the model."""

    table: Mapping[str, Any]
    dtype: DTypeLike

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return _declared(self, self.table, self.dtype)


def _declared(module: nn.Module, table: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    def one(name: str, of: Any) -> Any:
        if isinstance(of, Mapping):
            return _Table(of, dtype, name=name)()
        init, shape = of
        return declared(module, name, init, shape, dtype)

    return {name: one(name, of) for name, of in table.items()}
