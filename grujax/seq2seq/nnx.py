"""Sequence to sequence as a Flax NNX module."""

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
    """The parameters of a table below that of the model."""


@explained
@dataclasses.dataclass(eq=False, repr=False)
class Seq2Seq(model.Decoding, Regularised):
    """A GRU encoder and a GRU decoder over tokens: `Seq2Seq(hidden_size, *, ..., rngs)`.

    Attributes, calls and parameters are those of `grujax.seq2seq.Seq2Seq`, of Flax Linen.

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
        """The logits (B, T, V) of every next token, where the decoder reads `target`.

        Args:
          source, target, source_lengths, target_lengths, sampling_rate: see `grujax.seq2seq.Seq2Seq`.
          deterministic: True switches dropout off; the attribute where None.
          rngs: `sampling_rate` draws from its stream "sampling", dropout from "dropout"; dropout from the module's own
            stream where None.
        """
        refuse_others(self, others)
        sampling = None if sampling_rate is None else (sampling_rate, stream_of(rngs, "sampling")())
        noise, lengths = self._noise(deterministic, rngs), (source_lengths, target_lengths)
        return model.forced(self, self.weights(), source, target, *lengths, noise, sampling)[0]

    align, encode, step = model.Decoding.align, model.Decoding.encode, model.Decoding.step

    def weights(self) -> dict[str, Any]:
        """The parameters as a nested dict of arrays, that of Flax Linen."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))


def _place(module: nnx.Module, table: Mapping[str, Any], rngs: nnx.Rngs, dtype: DTypeLike) -> None:
    for name, of in table.items():
        if isinstance(of, tuple):
            init, shape = of
            setattr(module, name, nnx.Param(init(rngs.params(), shape, dtype)))
        else:
            setattr(module, name, _Table())
            _place(getattr(module, name), of, rngs, dtype)


def to_linen(module: Seq2Seq) -> tuple[linen.Seq2Seq, dict[str, Any]]:
    """(model, variables) of Flax Linen with the same fields and values, as `grujax.save` takes them.

    Raises `InputError` for a module of another class.

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
    """The module with the fields of `model` and the values of `variables`, bit for bit.

    Args:
      model: a `grujax.seq2seq.Seq2Seq`.
      variables: {"params": ...}.
      rngs: dropout draws from its stream "dropout".

    Raises:
      InputError: the model has another class, or the variables do not fit it.

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model, tokens = linen.Seq2Seq(20, source_vocabulary=30, target_vocabulary=40), jnp.ones((3, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, tokens)
    >>> module = from_linen(model, variables, rngs=nnx.Rngs(0))
    >>> bool((module(tokens, tokens) == model.apply(variables, tokens, tokens)).all())
    True
    """
    own = require_own(model, {"Seq2Seq": linen.Seq2Seq})
    require(isinstance(variables, Mapping), "variables", "a dict", f"a {type(variables).__name__}")
    module = Seq2Seq(**own.fields_of(Seq2Seq), rngs=rngs)
    fill(module, variables.get("params", {}))
    return module
