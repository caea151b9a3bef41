"""The GRU layer as a Flax Linen module: layers, directions, sequences and regularisation."""

import flax.linen as nn
from jax.typing import ArrayLike

from grujax.core.config import LayerSettings
from grujax.core.inputs import Steps, check_inputs
from grujax.core.stack import LayerRun, Noise, Parts, returned, run_layers
from grujax.linen.cell import GRUCell, known_features
from grujax.types import Array, Inputs


class GRU(LayerSettings, nn.Module):
    """`torch.nn.GRU` with batch_first=True, as a Flax module: one or several layers, one or both directions.

    The equations of one step are those of `GRUCell`; the attributes those of `LayerSettings` and `CellSettings`. The
    parameter tree is `l{k}` and `l{k}_reverse`, each as `GRUCell` has it, whatever the implementation; beside them
    `h0` where the initial state is learned and `l{k}_highway`.

    >>> import jax, jax.numpy as jnp
    >>> layer = GRU(20, num_layers=2, bidirectional=True)
    >>> x = jnp.ones((3, 7, 10))
    >>> output, h_last = layer.apply(layer.init(jax.random.key(0), x), x)
    >>> output.shape, h_last.shape
    ((3, 7, 40), (4, 3, 20))

    With `mutable=["intermediates"]` the gates of every step are sown: `l{k}[_reverse]_gates`, r, z and n (T, B, H).

    Source: torch.nn.GRU.
    """

    num_layers: int = 1

    def __call__(
        self,
        x: Inputs,
        h0: Array | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, Array] | tuple[tuple[Array, Array], Array]:
        """Runs over whole sequences.

        Args:
          x: (B, T, I), or any other number of batch axes, none included.
          h0: (L*D, B, H), index `layer * D + direction`; the initial state where None.
          lengths: integers (B,), how many steps of each sequence are valid; all where None.
          mask: bool (B, T) instead of `lengths`, which steps are valid.
          resets: bool (B, T), at which steps a new sequence begins: nothing passes from one to the next, in neither
            direction.
          deterministic: True switches the regularisation off.

        Returns:
          output (B, T, D*H), exactly 0 at steps that are not valid, and h_last (L*D, B, H), the state after the
          last valid step of each direction, h0 for length 0; with resets the last sequence's, in reverse the first's.
        """
        self.check()
        steps = check_inputs(x, known_features(self, "l0"), lengths, mask, resets, self.time_major)
        return returned(self, self.run(steps, h0, deterministic))

    @nn.compact
    def run(self, steps: Steps, h0: Array | None = None, deterministic: bool = True) -> LayerRun:
        """As `__call__`, on checked steps; time-major with one batch axis, and what pooling needs besides."""
        initial = None
        if self.initial_state == "learned":
            shape = (self.num_states, self.hidden_size)
            initial = self.param("h0", nn.initializers.zeros, shape, self.param_dtype)
        sown = self.is_mutable_collection("intermediates") and not self.is_initializing()
        parts = Parts(
            cell=lambda name: GRUCell(**self.settings(GRUCell), name=name),
            highway=self._highway,
            scan=_scan,
            initial=initial,
            noise=noise(self, deterministic),
            sow=(lambda name, gates: self.sow("intermediates", name, gates)) if sown else None,
        )
        return run_layers(self, steps, h0, parts)

    def _highway(self, name: str, x: Array) -> Array:
        dense = nn.Dense(
            x.shape[-1],
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            bias_init=nn.initializers.constant(-1.0),
            name=name,
        )
        return dense(x)


def noise(module: nn.Module, deterministic: bool) -> Noise | None:
    """What `module` draws from its rng stream "dropout" while its compact method runs."""
    if deterministic:
        return None
    return Noise(
        lambda x, rate: nn.Dropout(rate, deterministic=False)(x),
        lambda: module.make_rng("dropout"),
    )


def _scan(one_step, reverse: bool):
    return nn.scan(
        one_step,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType], a tuple is documented
        reverse=reverse,
    )
