"""The fields of a cell, a layer and the models: what they mean, what they may be, and what follows from them.

Plain dataclasses, which the modules of Flax Linen and of Flax NNX inherit.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from numbers import Real
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, ones
from jax.typing import DTypeLike

from grujax.arrays import require_floating_dtype
from grujax.core.initializers import blockwise, preset, with_update_bias
from grujax.errors import require, require_count, require_one_of
from grujax.kernels.checks import check_activation, check_spec
from grujax.kernels.table import KERNELS
from grujax.types import Activation, Array, GRUSpec, state_dtype

MERGES = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": lambda forward, backward: forward + backward,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "mul": lambda forward, backward: forward * backward,
}
CONNECTIONS = (None, "residual", "highway")
INITIAL_STATES = ("zeros", "learned")
RATES = ("dropout", "input_dropout", "recurrent_dropout", "weight_dropout", "zoneout")
POOLINGS = ("last", "mean", "max", "attention")
OUTPUT_ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}

Precision: TypeAlias = (
    str | jax.lax.Precision | tuple[str, str] | tuple[jax.lax.Precision, jax.lax.Precision] | None
)  # as the dense layers of Flax take it
OutputSize = TypeVar("OutputSize", int, Mapping[str, int])
Pooling: TypeAlias = str | Callable[[Array, Array], Array] | None


@cache
def own_fields(of: type) -> tuple[dataclasses.Field, ...]:
    """The fields of a module's class without the two that Flax Linen adds."""
    return tuple(f for f in dataclasses.fields(of) if f.name not in ("parent", "name"))


@dataclasses.dataclass(eq=False, repr=False)
class CellConfig:
    """What a cell, a layer and a model have in common. All but `hidden_size` are keyword arguments.

    Attributes:
      hidden_size: H.
      bias: False leaves both biases out.
      reset_after: True is n = tanh(... + r ⊙ (W_hn h + b_hn)), as torch and Keras 3 have it; False
        n = tanh(... + W_hn (r ⊙ h) + b_hn), as Cho et al. 2014 and Haiku.
      update: "keep" is h' = (1 − z) ⊙ n + z ⊙ h, as torch and Keras have it; "take" h' = (1 − z) ⊙ h + z ⊙ n, as Cho
        et al. 2014 and Haiku.
      activation, gate_activation: of n, and of r and z; a name of `grujax.kernels.step.ACTIVATIONS`, one with
        parameters such as `grujax.types.HardSigmoid(0.2, 0.5)`, or an elementwise function.
      clip: clips the argument of every activation to ±clip (ONNX); None does not clip.
      layer_norm: normalises the products with w_ih and with w_hh, each r and z together and n apart, before the
        biases, with learned scales `scale_ih` and `scale_hh` (Ba et al. 2016, arXiv 1607.06450, appendix).
      blocks: K, a divisor of H. w_hh is block-diagonal: a unit reads the states of its own H/K units. Its parameter is
        the K blocks alone, (K, H/K, 3H/K), columns r | z | n in each; each starts as w_hh of a layer of H/K units does.
        The product runs, and costs, as the dense one. With layer_norm=True, update="take" and update_bias=-1 it is
        related to the block GRU of DreamerV3 (Hafner et al. 2023, arXiv 2301.04104), and not the same: there r weighs
        W_in x too; docs/decisions/other-cells.md has all differences.
      initializer: "torch", "flax" or "keras", see `grujax.core.initializers`.
      update_bias: added to the update gate's part of the initial `b_ih`; with update="keep" units remember longer where
        it is positive.
      dtype: compute dtype of the products and dtype of the output; None promotes inputs and parameters. The state is
        carried in float32 at least.
      param_dtype: dtype that parameters are stored in.
      precision: of the products; None follows `jax.default_matmul_precision`.
    """

    hidden_size: int
    _: dataclasses.KW_ONLY
    bias: bool = True
    reset_after: bool = True
    update: str = "keep"
    activation: Activation = "tanh"
    gate_activation: Activation = "sigmoid"
    clip: float | None = None
    layer_norm: bool = False
    blocks: int = 1
    initializer: str = "torch"
    update_bias: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Precision = None

    @property
    def spec(self) -> GRUSpec:
        """The static part of the equations, as the kernels and `grujax.kernels.explain` take it."""
        return GRUSpec(*(getattr(self, name) for name in GRUSpec._fields))

    @property
    def carry_dtype(self) -> DTypeLike:
        """The dtype of a state where none is given."""
        return state_dtype(self.dtype or self.param_dtype)

    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        require_count(self.hidden_size, "hidden_size")
        require_count(self.blocks, "blocks")
        rule, expected = f"blocks={self.blocks} needs a hidden_size that it divides", f"a multiple of {self.blocks}"
        require(self.hidden_size % self.blocks == 0, "hidden_size", expected, self.hidden_size, rule=rule)
        check_spec(self.spec)
        require_floating_dtype(self.dtype, "dtype")
        require_floating_dtype(self.param_dtype, "param_dtype")
        rule = f"update_bias={self.update_bias} needs bias=True"
        remedy = "The update gate has no bias to add it to."
        require(self.bias or self.update_bias == 0, "update_bias", 0, self.update_bias, remedy, rule=rule)

    def fields_of(self, of: type) -> dict[str, Any]:
        """The fields that this module and the class `of` have in common, to make one from the other."""
        mine = {f.name for f in own_fields(type(self))}
        return {f.name: getattr(self, f.name) for f in own_fields(of) if f.name in mine}

    def parameters(self, input_size: int) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """The initializer and shape of each parameter of a cell: the one place that knows their names and shapes."""
        init, columns = preset(self.initializer, self.hidden_size), 3 * self.hidden_size
        w_hh, size = (init.w_hh, (self.hidden_size, columns)), self.hidden_size // self.blocks
        if self.blocks > 1:
            w_hh = blockwise(preset(self.initializer, size).w_hh), (self.blocks, size, 3 * size)
        first = with_update_bias(init.bias, self.update_bias) if self.update_bias else init.bias
        return {
            "w_ih": (init.w_ih, (input_size, columns)),
            "w_hh": w_hh,
            **({"b_ih": (first, (columns,)), "b_hh": (init.bias, (columns,))} if self.bias else {}),
            **(dict.fromkeys(("scale_ih", "scale_hh"), (ones, (columns,))) if self.layer_norm else {}),
        }


@dataclasses.dataclass(eq=False, repr=False)
class LayerConfig(CellConfig):
    """What a layer and a model have in common, beside the attributes of `CellConfig`.

    Attributes:
      num_layers: L. Layer k reads the output of layer k − 1.
      bidirectional: adds a second pass over each sequence, from its last valid step to its first.
      reverse: the one pass reads each sequence backwards (Keras: `go_backwards`, ONNX: `direction="reverse"`). The
        output stays in time order; `h_last` is the state after the first step of time; with bidirectional=False.
      merge: how both directions of a layer become one output: "concat" (torch), "sum", "mean", "mul"; None returns
        them apart, (2, B, T, H), from a single layer.
      connection: from the second layer on, "residual" adds a layer's input to its output; "highway" weighs the two by
        t = σ(W x + b), t ⊙ output + (1 − t) ⊙ input (Srivastava et al. 2015, arXiv 1505.00387), b −1 at the start.
      initial_state: what a sequence starts from where no h0 is given, and after a reset: "zeros", or "learned", a
        parameter `h0 (L*D, H)`, zero at the start.
      time_major: time is the first axis of x, mask, resets and output.
      dropout: probability, on the output of every layer but the last (torch.nn.GRU); a single layer drops nothing, and
        warns of that in training.
      input_dropout: probability, on the input of every layer, one mask for all steps of a sequence (Gal and
        Ghahramani 2016, arXiv 1512.05287).
      recurrent_dropout: probability, on the state where the products with w_hh read it, one mask for all steps (ibid.).
      weight_dropout: probability, on w_hh itself, one mask for all sequences and steps: DropConnect (Merity et al.
        2018, arXiv 1708.02182).
      zoneout: probability that a unit keeps its state for a step; in evaluation every unit moves by its mean,
        h' = zoneout h + (1 − zoneout) h~ (Krueger et al. 2017, arXiv 1606.01305).
      implementation: None chooses the fastest; "reference" is Flax's scan over `GRUCell`; further names as in
        `grujax.kernels.explain`.

    All five draw from the rng stream "dropout". With `deterministic` they are off, except that zoneout uses its mean.
    """

    _: dataclasses.KW_ONLY
    num_layers: int = 1
    bidirectional: bool = False
    reverse: bool = False
    merge: str | None = "concat"
    connection: str | None = None
    initial_state: str = "zeros"
    time_major: bool = False
    dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: float = 0.0
    implementation: str | None = None

    @property
    def backwards(self) -> tuple[bool, ...]:
        """For each direction, whether it reads backwards."""
        return (False, True) if self.bidirectional else (self.reverse,)

    @property
    def cell_names(self) -> list[list[str]]:
        """The cells of each layer by direction, as the parameter tree names them: [["l0", "l0_reverse"], ...].

        A property, because `nnx.tabulate` compiles the public methods that a call runs.
        """
        ways = ("", "_reverse")[: self.num_directions]
        return [[f"l{k}{way}" for way in ways] for k in range(self.num_layers)]

    @property
    def num_directions(self) -> int:
        """D."""
        return len(self.backwards)

    @property
    def num_states(self) -> int:
        """L*D."""
        return self.num_layers * self.num_directions

    @property
    def width(self) -> int:
        """Of a layer's output, both directions merged: the features that the next layer and pooling read."""
        return self.hidden_size * (self.num_directions if self.merge == "concat" else 1)

    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        super().check()
        require_count(self.num_layers, "num_layers")
        for name in RATES:
            rate = getattr(self, name)
            require(isinstance(rate, Real) and 0 <= float(rate) <= 1, name, "a probability", repr(rate))
        rule, remedy = "reverse=True needs bidirectional=False", "A bidirectional layer reads backwards too."
        require(not (self.reverse and self.bidirectional), "reverse", False, True, remedy, rule=rule)
        require_one_of(self.merge, (*MERGES, None), "merge")
        merge, given = repr(self.merge), f"merge={self.merge!r}"
        one_way = self.bidirectional or self.merge == "concat"
        rule, remedy = f"{given} needs bidirectional=True", "One direction has nothing to merge: leave it out."
        require(one_way, "merge", "'concat'", merge, remedy, rule=rule)
        readable = self.merge is not None or self.num_layers == 1
        rule, remedy = f"{given} needs num_layers=1", "The next layer reads one input: name how the two become one."
        require(readable, "merge", f"one of {list(MERGES)}", merge, remedy, rule=rule)
        require_one_of(self.connection, CONNECTIONS, "connection")
        require_one_of(self.initial_state, INITIAL_STATES, "initial_state")
        require_one_of(self.implementation, ("reference", *sorted(KERNELS), None), "implementation")


def warn_of_idle_dropout(layer: LayerConfig, deterministic: bool) -> None:
    """Warns, as torch does, in training of a single layer, where `dropout` has no place to act."""
    if layer.dropout and layer.num_layers == 1 and not deterministic:
        idle = f"dropout={layer.dropout} acts between layers, and num_layers=1 has no such place: nothing is dropped."
        remedy = "Write dropout=0; or use input_dropout, or GRUModel, which drops before its head too."
        warnings.warn(f"{idle} {remedy}", stacklevel=3)


@dataclasses.dataclass(eq=False, repr=False)
class EncoderConfig(LayerConfig):
    """What an encoder and a model have in common, beside the attributes of `LayerConfig` and `CellConfig`.

    Attributes:
      pooling: how all steps become one vector. "last": the last state of each direction of the top layer; length 0
        gives h0. (`output[:, -1]` would be wrong for padded rows and for the reverse direction.) "mean" and "max" over
        the valid steps, "attention" their mean weighed by softmax(u · tanh(W output + b)) (Yang et al. 2016,
        Hierarchical Attention Networks); length 0 gives 0. A function `f(output (..., T, F), valid (..., T))`, where
        the output is 0 at steps that are not valid. None: no pooling, one output for each step.
    """

    _: dataclasses.KW_ONLY
    pooling: Pooling = "last"

    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        super().check()
        if not callable(self.pooling):
            require_one_of(self.pooling, (*POOLINGS, None), "pooling", "Or pass a function.")
        one = self.merge is not None or not self.bidirectional
        rule = "merge=None needs a GRU without pooling and heads"
        remedy = "grujax.GRU returns the directions apart."
        require(one, "merge", f"one of {list(MERGES)}", None, remedy, rule=rule)


@dataclasses.dataclass(eq=False, repr=False)
class ModelConfig(EncoderConfig, Generic[OutputSize]):
    """A model's own, beside the attributes of `EncoderConfig`, `LayerConfig` and `CellConfig`.

    Attributes:
      output_size: width of the head; or several heads, a dict of widths by name, whose outputs are a dict too.
      head_hidden: widths of hidden layers in each head, W f(... f(W pool + b)) + b; none by default.
      head_activation: f, a name of `grujax.kernels.step.ACTIVATIONS` or a function.
      output_activation: "softmax" over the outputs of each head, or "sigmoid" of each: probabilities. None, for
        training, whose losses take the values before it.
      dropout: between the layers, as in torch, and before the head; rng stream "dropout".
      steps_per_frame: n; n steps of I features become a step of n*I, which the GRU then reads, ceil(T / n) of them
        (frame stacking, Sak et al. 2015, arXiv 1507.06947). Steps that are not valid, or that the last frame lacks,
        are 0 in it, after the input's statistics; a frame is valid where one of its steps is. For long sequences.
    """

    output_size: OutputSize
    _: dataclasses.KW_ONLY
    head_hidden: tuple[int, ...] = ()
    head_activation: Activation = "relu"
    output_activation: str | None = None
    steps_per_frame: int = 1

    @property
    def heads(self) -> dict[str, list[tuple[str, int]]]:
        """The dense layers of each head by its name, in order: name and width of each."""
        sizes = self.output_size if isinstance(self.output_size, Mapping) else {"": self.output_size}
        layers = {name: f"head_{name}" if isinstance(self.output_size, Mapping) else "head" for name in sizes}
        hidden = list(enumerate(self.head_hidden))
        return {
            name: [*((f"{layers[name]}_hidden{i}", width) for i, width in hidden), (layers[name], size)]
            for name, size in sizes.items()
        }

    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        super().check()
        several = isinstance(self.output_size, Mapping)
        require(bool(self.heads), "output_size", "at least one head", self.output_size)
        require_count(self.steps_per_frame, "steps_per_frame")
        rule, remedy = f"steps_per_frame={self.steps_per_frame} needs pooling", "Steps have no outputs of their own."
        pools = self.pooling is not None or self.steps_per_frame == 1
        require(pools, "pooling", f"one of {list(POOLINGS)}", None, remedy, rule=rule)
        for name, layers in self.heads.items():
            require_count(layers[-1][1], f"output_size[{name!r}]" if several else "output_size")
        for i, width in enumerate(self.head_hidden):
            require_count(width, f"head_hidden[{i}]")
        taken = {f.name for f in dataclasses.fields(self)}  # layers are attributes too
        for name, layers in self.heads.items():
            named = isinstance(name, str) and "/" not in name
            remedy = "A slash separates the names of a path in a model file."
            require(named, "output_size", "heads named by strings without a slash", repr(name), remedy)
            for layer, _ in layers:
                found = f"{name!r}: its layer would be {layer}"
                require(layer not in taken, "output_size", "heads whose layers have names of their own", found)
                taken.add(layer)
        check_activation(self.head_activation, "head_activation")
        require_one_of(self.output_activation, (*OUTPUT_ACTIVATIONS, None), "output_activation")


def input_size_of(model: Any, features: int) -> int:
    """I of a model whose first layer reads so many features, the rows of its w_ih."""
    return features // getattr(model, "steps_per_frame", 1)
