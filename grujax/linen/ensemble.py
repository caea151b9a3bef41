"""Ensembles: several models with the same fields, used as one model that predicts their mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from grujax.errors import require, require_count
from grujax.linen.model import GRUModel
from grujax.types import Array, Inputs


@dataclass(frozen=True)
class GRUEnsemble:
    """The mean prediction of N models with the same fields.

    This is a deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474):

        y = log(1/N Σₙ softmax(yₙ))    with classes=True: softmax(y) is the mean of the members' probabilities
        y = 1/N Σₙ yₙ                  otherwise: the mean of values, or of each quantile

    It has `init` and `apply` like a `GRUModel`, but it is not a Flax module. Its variables are those of `model` with a
    leading axis N in "params"; the members share "statistics".

    Attributes:
      model: the model that every member has, with a single head.
      members: the number of members, N.
      classes: whether the outputs are logits, the values before a softmax over classes.

    >>> x = jnp.ones((3, 7, 10))
    >>> ensemble = GRUEnsemble(GRUModel(hidden_size=20, output_size=5), members=4, classes=False)
    >>> variables = ensemble.init(jax.random.key(0), x)
    >>> ensemble.apply(variables, x).shape, variables["params"]["head"]["bias"].shape
    ((3, 5), (4, 5))
    >>> each = [ensemble.model.apply(ensemble.member(variables, n), x) for n in range(4)]
    >>> bool(jnp.allclose(sum(each) / 4, ensemble.apply(variables, x), atol=1e-6))
    True
    """

    model: GRUModel[int]
    members: int
    classes: bool

    def __post_init__(self) -> None:
        alone = isinstance(self.model, GRUModel) and not isinstance(self.model.output_size, Mapping)
        require(alone, "model", "a GRUModel with a single head", repr(self.model))
        require_count(self.members, "members")
        require(isinstance(self.classes, bool), "classes", "True or False", repr(self.classes))

    def init(self, rng: Array, x: ArrayLike) -> dict[str, Any]:
        """Returns initial variables. The weights of each member are drawn with a different key, split from `rng`."""
        return dict(jax.vmap(lambda key: self.model.init(key, jnp.asarray(x)))(jax.random.split(rng, self.members)))

    def apply(
        self,
        variables: Mapping[str, Any],
        x: Inputs,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """Returns the mean prediction, without dropout.

        The shape is (B, output_size), or (B, T, output_size) with `pooling=None`, 0 at steps that are not valid.
        Arguments and errors are those of `GRUModel`.
        """

        def prediction(params: Any) -> Any:
            return self.model.apply({**variables, "params": params}, x, lengths=lengths, mask=mask)

        for a in jax.tree.leaves(variables["params"]):
            expected = f"parameters whose first axis has {self.members} members"
            require(a.shape[:1] == (self.members,), "variables", expected, f"shape {a.shape}")
        each = jax.vmap(prediction)(variables["params"])
        if not self.classes:
            return each.mean(0)
        wide = each.astype(jnp.promote_types(each.dtype, jnp.float32))
        mean = jax.nn.logsumexp(jax.nn.log_softmax(wide), axis=0) - jnp.log(wide.dtype.type(self.members))
        return jnp.where((each == 0).all((0, -1))[..., None], 0, mean)  # steps that are not valid: every member gives 0

    def member(self, variables: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Returns the variables of one member, for `model`; the members' spread shows how certain the ensemble is."""
        require(0 <= index < self.members, "index", f"0 to {self.members - 1}", index)
        return {**variables, "params": jax.tree.map(lambda a: a[index], variables["params"])}
