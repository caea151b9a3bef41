"""The sequence-to-sequence model as a Flax Linen module."""

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
    """A GRU encoder and a GRU decoder over tokens.

    Attributes: those of `Seq2SeqConfig` and `CellConfig`.

    The equations are in `grujax.seq2seq.model`. A call is for training: the decoder reads the target (teacher forcing).
    `encode` and `step` are for decoding, with `grujax.seq2seq.greedy`, `sample` or `beam_search`.

    Parameters: `encoder` and `decoder`, each with the parameters of a `GRU`; `source_embedding` and `target_embedding`
    (V, E); `logits`; and, depending on the context, `start`, `summary`, `attention` and `readout`.

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
        """Computes the logits of the next token at every step, while the decoder reads `target`.

        Args:
          source: the source tokens (B, S).
          target: the tokens (B, T) that the decoder reads, with the start token first. The logits at step t belong to
            token t + 1, so the loss compares the logits of `target[:, :-1]` with `target[:, 1:]`.
          source_lengths, target_lengths: integers (B,), the number of valid tokens; None: all are valid.
          sampling_rate: the share of target tokens that are replaced by tokens drawn from the decoder's own logits of
            the previous step (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099); rng stream "sampling". None is
            teacher forcing: the decoder runs over all steps at once, except with context="bahdanau".
          deterministic: False switches dropout on; rng stream "dropout".

        Returns:
          The logits (B, T, target_vocabulary) in the compute dtype, exactly 0 at steps that are not valid.

        Raises:
          InputError: a field, shape, dtype, token or length is not supported.
          TypeError: a keyword is unknown; the message says what to write instead.
        """
        refuse_others(self, others)
        self.check()
        noise = None if deterministic else noise_of(lambda: key_of(self, "dropout"))
        sampling = None if sampling_rate is None else (sampling_rate, key_of(self, "sampling"))
        lengths = source_lengths, target_lengths
        return model.forced(self, self.weights(), source, target, *lengths, noise, sampling)[0]

    # Assigned here so that Flax wraps them, which gives names in profiles and intermediates, and the docs list them.
    align, encode, step = model.Decoding.align, model.Decoding.encode, model.Decoding.step

    @nn.compact
    def weights(self) -> dict[str, Any]:
        """Declares the parameters and returns them."""
        return _declared(self, self.parameter_table(), self.param_dtype)


class _Table(nn.Module):
    """The parameters of a nested table."""

    table: Mapping[str, Any]
    dtype: DTypeLike

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return _declared(self, self.table, self.dtype)


def _declared(module: nn.Module, table: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Declares the parameters of a table, which may be nested, and returns them."""

    def entry(name: str, row: Any) -> Any:
        if isinstance(row, Mapping):
            return _Table(row, dtype, name=name)()
        init, shape = row
        return declared(module, name, init, shape, dtype)

    return {name: entry(name, row) for name, row in table.items()}
