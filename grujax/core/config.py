"""The fields of a cell, a layer and the models: their meaning, their checks, and the values derived from them.

Plain dataclasses, from which the Flax Linen and the Flax NNX modules inherit.
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
)  # the type that the dense layers of Flax accept
OutputSize = TypeVar("OutputSize", int, Mapping[str, int])
Pooling: TypeAlias = str | Callable[[Array, Array], Array] | None


@cache
def own_fields(cls: type) -> tuple[dataclasses.Field, ...]:
    """Returns the fields of a module's class, without the two that Flax Linen adds."""
    return tuple(f for f in dataclasses.fields(cls) if f.name not in ("parent", "name"))


@dataclasses.dataclass(eq=False, repr=False)
class CellConfig:
    """The fields that a cell, a layer and a model share. All but `hidden_size` are keyword-only.

    Attributes:
      hidden_size: the number of units, H.
      bias: whether the cell has biases. False omits both.
      reset_after: where the reset gate acts. True: n = tanh(... + r ⊙ (W_hn h + b_hn)), as in torch and Keras 3. False:
        n = tanh(... + W_hn (r ⊙ h) + b_hn), as in Cho et al. 2014 and Haiku.
      update: what the update gate weighs. "keep": h' = (1 − z) ⊙ n + z ⊙ h, as in torch and Keras. "take":
        h' = (1 − z) ⊙ h + z ⊙ n, as in Cho et al. 2014 and Haiku.
      activation, gate_activation: the activation of n, and the one of r and z: a name from
        `grujax.kernels.step.ACTIVATIONS`, a parametric one such as `grujax.types.HardSigmoid(0.2, 0.5)`, or an
        elementwise function.
      clip: clips the argument of every activation to ±clip (ONNX). None does not clip.
      layer_norm: normalises the products with w_ih and with w_hh, in each r and z together and n separately, before the
        biases are added, with learned scales `scale_ih` and `scale_hh` (Ba et al. 2016, arXiv 1607.06450, appendix).
      blocks: the number of diagonal blocks of w_hh, K, a divisor of H. Each unit reads only the states of the H/K units
        of its own block. The parameter holds the K blocks only, (K, H/K, 3H/K), with columns r | z | n in each; each is
        initialised like w_hh of a layer of H/K units. The product is computed as a dense one and costs the same. With
        layer_norm=True, update="take" and update_bias=-1 the cell is related to the block GRU of DreamerV3 (Hafner et
        al. 2023, arXiv 2301.04104), but not the same: in DreamerV3 r weighs W_in x too. docs/decisions/other-cells.md
        lists all differences.
      initializer: "torch", "flax" or "keras"; see `grujax.core.initializers`.
      update_bias: a number added to the update gate's part of the initial `b_ih`. With update="keep" a positive value
        makes units remember longer.
      dtype: the dtype of the products and of the output. None promotes the dtypes of inputs and parameters. The state
        is carried in float32 at least.
      param_dtype: the dtype in which parameters are stored.
      precision: the precision of the products. None follows `jax.default_matmul_precision`.
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
        """The static part of the equations, which the kernels and `grujax.kernels.explain` take."""
        return GRUSpec(*(getattr(self, name) for name in GRUSpec._fields))

    @property
    def carry_dtype(self) -> DTypeLike:
        """The dtype of the state if no h0 is passed."""
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

    def fields_of(self, cls: type) -> dict[str, Any]:
        """Returns the values of the fields that the class `cls` has too, as arguments of its constructor."""
        names = {f.name for f in own_fields(type(self))}
        return {f.name: getattr(self, f.name) for f in own_fields(cls) if f.name in names}

    def parameters(self, input_size: int) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initialiser and shape of each parameter of a cell. Names and shapes are defined only here."""
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
    """The fields that a layer and a model share, in addition to those of `CellConfig`.

    Attributes:
      num_layers: the number of layers, L. Layer k reads the output of layer k − 1.
      bidirectional: adds a second pass over each sequence, from its last valid step to its first.
      reverse: makes the single pass read each sequence backwards (Keras: `go_backwards`, ONNX: `direction="reverse"`).
        The output stays in time order, and `h_last` is the state after the first time step. Requires
        bidirectional=False.
      merge: how the outputs of both directions are combined: "concat" (torch), "sum", "mean" or "mul". None returns
        them separately, (2, B, T, H), and requires a single layer.
      connection: what surrounds every layer from the second on. "residual" adds the layer's input to its output;
        "highway" computes t ⊙ output + (1 − t) ⊙ input with t = σ(W x + b) and b = −1 at the start (Srivastava et al.
        2015, arXiv 1505.00387).
      initial_state: the state at the start of a sequence if no h0 is passed, and after a reset: "zeros", or "learned",
        a parameter `h0 (L*D, H)` that is initialised to zero.
      time_major: makes time the first axis of x, mask, resets and output.
      dropout: the drop probability for the output of every layer but the last (torch.nn.GRU). With a single layer it
        has no effect, and training warns of that.
      input_dropout: the drop probability for the input of every layer, with one mask for all steps of a sequence (Gal
        and Ghahramani 2016, arXiv 1512.05287).
      recurrent_dropout: the drop probability for the state in the products with w_hh, with one mask for all steps
        (ibid.).
      weight_dropout: the drop probability for the entries of w_hh, with one mask for all sequences and steps:
        DropConnect (Merity et al. 2018, arXiv 1708.02182).
      zoneout: the probability that a unit keeps its state for a step. Evaluation uses the expected value,
        h' = zoneout h + (1 − zoneout) h~, where h~ is the updated state (Krueger et al. 2017, arXiv 1606.01305).
      implementation: None chooses the fastest; "reference" is Flax's scan over `GRUCell`; other names are those of
        `grujax.kernels.explain`.

    All five kinds of dropout draw from the rng stream "dropout". With `deterministic=True` they are off, except that
    zoneout uses its expected value.
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
        """Whether each direction reads backwards."""
        return (False, True) if self.bidirectional else (self.reverse,)

    @property
    def cell_names(self) -> list[list[str]]:
        """The names of the cells in the parameter tree, by layer and direction: [["l0", "l0_reverse"], ...].

        It is a property because `nnx.tabulate` compiles the public methods that a call runs.
        """
        suffixes = ("", "_reverse")[: self.num_directions]
        return [[f"l{k}{suffix}" for suffix in suffixes] for k in range(self.num_layers)]

    @property
    def num_directions(self) -> int:
        """The number of directions, D."""
        return len(self.backwards)

    @property
    def num_states(self) -> int:
        """The number of states of a sequence, L*D."""
        return self.num_layers * self.num_directions

    @property
    def width(self) -> int:
        """The number of features of a layer's output, with both directions merged."""
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
        merge, option = repr(self.merge), f"merge={self.merge!r}"
        mergeable = self.bidirectional or self.merge == "concat"
        rule, remedy = f"{option} needs bidirectional=True", "A single direction has nothing to merge: omit merge."
        require(mergeable, "merge", "'concat'", merge, remedy, rule=rule)
        readable = self.merge is not None or self.num_layers == 1
        rule, remedy = f"{option} needs num_layers=1", "The next layer reads one input: choose how to merge the two."
        require(readable, "merge", f"one of {list(MERGES)}", merge, remedy, rule=rule)
        require_one_of(self.connection, CONNECTIONS, "connection")
        require_one_of(self.initial_state, INITIAL_STATES, "initial_state")
        require_one_of(self.implementation, ("reference", *sorted(KERNELS), None), "implementation")


def warn_of_idle_dropout(layer: LayerConfig, deterministic: bool) -> None:
    """Warns, as torch does, if a single layer is trained with `dropout`, which acts only between layers."""
    if layer.dropout and layer.num_layers == 1 and not deterministic:
        idle = f"dropout={layer.dropout} acts between layers, so with num_layers=1 nothing is dropped."
        remedy = "Write dropout=0, or use input_dropout, or use GRUModel, which also applies dropout before its head."
        warnings.warn(f"{idle} {remedy}", stacklevel=3)


@dataclasses.dataclass(eq=False, repr=False)
class EncoderConfig(LayerConfig):
    """The fields that an encoder and a model share, in addition to those of `LayerConfig` and `CellConfig`.

    Attributes:
      pooling: how the steps become one vector. "last" takes the last state of each direction of the top layer; length 0
        gives h0. (`output[:, -1]` would be wrong for padded rows and for the reverse direction.) "mean" and "max" pool
        over the valid steps, and "attention" takes their mean weighted by softmax(u · tanh(W output + b)) (Yang et al.
        2016, Hierarchical Attention Networks); length 0 gives 0. A function is called as
        `f(output (..., T, F), valid (..., T))`, with output 0 at steps that are not valid. None does not pool: there is
        one output for each step.
    """

    _: dataclasses.KW_ONLY
    pooling: Pooling = "last"

    def check(self) -> None:
        """Raises `InputError` for a field that cannot be served."""
        super().check()
        if not callable(self.pooling):
            require_one_of(self.pooling, (*POOLINGS, None), "pooling", "Or pass a function.")
        mergeable = self.merge is not None or not self.bidirectional
        rule = "merge=None needs a GRU without pooling and heads"
        remedy = "grujax.GRU returns the directions separately."
        require(mergeable, "merge", f"one of {list(MERGES)}", None, remedy, rule=rule)


@dataclasses.dataclass(eq=False, repr=False)
class ModelConfig(EncoderConfig, Generic[OutputSize]):
    """The fields that only a model has, in addition to those of `EncoderConfig`, `LayerConfig` and `CellConfig`.

    Attributes:
      output_size: the width of the head; or a dict of widths by name, which makes several heads and a dict of outputs.
      head_hidden: the widths of hidden layers in each head, W f(... f(W pool + b)) + b; none by default.
      head_activation: f, a name from `grujax.kernels.step.ACTIVATIONS` or a function.
      output_activation: "softmax" over the outputs of each head or "sigmoid" of each output, which give probabilities.
        None, for training, returns the values before the activation, which the losses expect.
      dropout: the drop probability between the layers, as in torch, and before the head; rng stream "dropout".
      steps_per_frame: n. The GRU reads ceil(T / n) frames of n*I features, each made of n steps of I features (frame
        stacking, Sak et al. 2015, arXiv 1507.06947). Steps that are not valid, or that are missing in the last frame,
        are set to 0 after the input is standardised; a frame is valid if any of its steps is. For long sequences.
    """

    output_size: OutputSize
    _: dataclasses.KW_ONLY
    head_hidden: tuple[int, ...] = ()
    head_activation: Activation = "relu"
    output_activation: str | None = None
    steps_per_frame: int = 1

    @property
    def heads(self) -> dict[str, list[tuple[str, int]]]:
        """From the name of each head to the name and width of its dense layers, in order."""
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
        rule = f"steps_per_frame={self.steps_per_frame} needs pooling"
        remedy = "A frame of several steps has a single output."
        pools = self.pooling is not None or self.steps_per_frame == 1
        require(pools, "pooling", f"one of {list(POOLINGS)}", None, remedy, rule=rule)
        for name, layers in self.heads.items():
            require_count(layers[-1][1], f"output_size[{name!r}]" if several else "output_size")
        for i, width in enumerate(self.head_hidden):
            require_count(width, f"head_hidden[{i}]")
        taken = {f.name for f in dataclasses.fields(self)}  # layers become attributes, beside the fields
        for name, layers in self.heads.items():
            named = isinstance(name, str) and "/" not in name
            remedy = "In a model file, a slash separates the parts of a path."
            require(named, "output_size", "heads named by strings without a slash", repr(name), remedy)
            for layer, _ in layers:
                found = f"{name!r}, whose layer {layer} would have a name that is already used"
                require(layer not in taken, "output_size", "heads whose layers have unique names", found)
                taken.add(layer)
        check_activation(self.head_activation, "head_activation")
        require_one_of(self.output_activation, (*OUTPUT_ACTIVATIONS, None), "output_activation")


def input_size_of(model: Any, features: int) -> int:
    """Returns the input size I of a model whose first layer reads `features` features, the rows of its w_ih."""
    return features // getattr(model, "steps_per_frame", 1)
