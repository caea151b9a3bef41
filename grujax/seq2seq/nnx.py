"""The sequence-to-sequence model as a Flax NNX module, and its conversion to and from Flax Linen."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Never

from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from grujax.core.keywords import explained, refuse_others
from grujax.errors import require
from grujax.linen import instead_of, require_own
from grujax.nnx.bridge import fill
from grujax.nnx.cell import Rngs, stream_of
from grujax.nnx.layer import Regularised
from grujax.seq2seq import linen, model
from grujax.types import Array


class _Table(nnx.Module):
    """The parameters of a nested table."""


@explained
@dataclasses.dataclass(eq=False, repr=False)
class Seq2Seq(model.Decoding, Regularised):
    """A GRU encoder and a GRU decoder over tokens: `Seq2Seq(hidden_size, *, ..., rngs)`.

    Attributes, calls and parameters are those of `grujax.seq2seq.Seq2Seq`, the Flax Linen module.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> translator = Seq2Seq(20, source_vocabulary=30, target_vocabulary=40, rngs=nnx.Rngs(0))
    >>> translator(jnp.ones((3, 7), int), jnp.ones((3, 5), int), source_lengths=jnp.array([7, 4, 2])).shape
    (3, 5, 40)
    """

    _: dataclasses.KW_ONLY
    rngs: dataclasses.InitVar[nnx.Rngs]

    def __post_init__(self, rngs: nnx.Rngs) -> None:
        self.check()
        _place(self, self.parameter_table(), rngs, self.param_dtype)
        self._draws(rngs, self.dropout)

    def __call__(
        self,
        source: ArrayLike,
        target: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        sampling_rate: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: Rngs | None = None,
        **others: Never,
    ) -> Array:
        """Computes the logits (B, T, V) of the next token at every step, while the decoder reads `target`.

        Args:
          source, target, source_lengths, target_lengths, sampling_rate: see `grujax.seq2seq.Seq2Seq`.
          deterministic: True switches dropout off; None uses the attribute.
          rngs: the random streams: `sampling_rate` draws from "sampling", dropout from "dropout". With None dropout
            draws from the module's own stream.

        Raises:
          InputError, TypeError: see `grujax.seq2seq.Seq2Seq`.
        """
        refuse_others(self, others)
        sampling = None if sampling_rate is None else (sampling_rate, stream_of(rngs, "sampling")())
        noise, lengths = self._noise(deterministic, rngs), (source_lengths, target_lengths)
        return model.forced(self, self.weights(), source, target, *lengths, noise, sampling)[0]

    align, encode, step = model.Decoding.align, model.Decoding.encode, model.Decoding.step

    def weights(self) -> dict[str, Any]:
        """Returns the parameters as a nested dict of arrays, with the structure of the Flax Linen parameters."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))


def _place(module: nnx.Module, table: Mapping[str, Any], rngs: nnx.Rngs, dtype: DTypeLike) -> None:
    """Draws the parameters of a table, which may be nested, and sets them as attributes of the module."""
    for name, row in table.items():
        if isinstance(row, tuple):
            init, shape = row
            setattr(module, name, nnx.Param(init(rngs.params(), shape, dtype)))
        else:
            setattr(module, name, _Table())
            _place(getattr(module, name), row, rngs, dtype)


def to_linen(module: Seq2Seq) -> tuple[linen.Seq2Seq, dict[str, Any]]:
    """Converts a module to Flax Linen: (model, variables), as `grujax.save` takes them, bit for bit.

    Raises:
      InputError: the module is not a `grujax.seq2seq.nnx.Seq2Seq`.

    >>> from flax import nnx
    >>> translator = Seq2Seq(20, source_vocabulary=30, target_vocabulary=40, rngs=nnx.Rngs(0))
    >>> model, variables = to_linen(translator)
    >>> model.hidden_size, variables["params"]["source_embedding"].shape
    (20, (30, 20))
    """
    found = f"{type(module).__module__}.{type(module).__name__}"
    require(type(module) is Seq2Seq, "module", "a grujax.seq2seq.nnx.Seq2Seq", found, instead_of(module))
    return linen.Seq2Seq(**module.fields_of(linen.Seq2Seq)), {"params": module.weights()}


def from_linen(model: linen.Seq2Seq, variables: Mapping[str, Any], *, rngs: nnx.Rngs) -> Seq2Seq:
    """Converts a Linen model to a Flax NNX module with the same fields and values, bit for bit.

    Args:
      model: a `grujax.seq2seq.Seq2Seq`.
      variables: its variables, {"params": ...}.
      rngs: the random streams of the new module; dropout draws from "dropout".

    Raises:
      InputError: the model has another class, or the variables do not fit the model.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model, tokens = linen.Seq2Seq(20, source_vocabulary=30, target_vocabulary=40), jnp.ones((3, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, tokens)
    >>> module = from_linen(model, variables, rngs=nnx.Rngs(0))
    >>> bool((module(tokens, tokens) == model.apply(variables, tokens, tokens)).all())
    True
    """
    checked = require_own(model, {"Seq2Seq": linen.Seq2Seq})
    require(isinstance(variables, Mapping), "variables", "a dict", f"a {type(variables).__name__}")
    module = Seq2Seq(**checked.fields_of(Seq2Seq), rngs=rngs)
    fill(module, variables.get("params", {}))
    return module
