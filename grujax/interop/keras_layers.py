"""`Layer`, a Keras layer as plain data: the options that determine what it computes, and its weights.

The configs are those that Keras serialises and stores in `.keras` files. Classes are looked up in a table: nothing is
imported, built or run, and Keras is not needed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from grujax.core.dialects import DIALECTS, Dialect
from grujax.errors import InputError, require, require_count, require_equal, require_one_of
from grujax.interop.prove import FIND
from grujax.types import Activation, HardSigmoid, LeakyRelu, Softplus

OF_KERAS_2 = "hard_sigmoid of Keras 2"
ACTIVATIONS: dict[str, Activation] = {
    name: name for name in ("tanh", "sigmoid", "relu", "hard_tanh", "hard_sigmoid", "softsign", "elu")
}
ACTIVATIONS |= {"linear": "identity", "softplus": Softplus(), "leaky_relu": LeakyRelu(0.2), OF_KERAS_2: HardSigmoid()}
"""Keras' name of each activation -> grujax's name."""
BOTH_VERSIONS = {"tanh", "sigmoid", "relu", "softsign", "elu", "linear", "softplus"}
"""Those that are the same in Keras 2 and 3; hard_sigmoid is clip(0.2 x + 0.5, 0, 1) in 2, relu6(x + 3) / 6 in 3."""
OUTPUTS = {"linear": None, "sigmoid": "sigmoid", "softmax": "softmax"}
"""Keras' name of each activation of the head -> grujax's name."""
MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean", None: None}
COMPUTES = ("float16", "bfloat16")
RECURRENT, HEADS = ("GRUCell", "GRU", "Bidirectional"), ("Dense", "TimeDistributed")
POOLINGS = {"GlobalAveragePooling1D": "mean", "GlobalMaxPooling1D": "max"}

NUMBER = (int, float)
CELL = {"units": (int,), "activation": (str,), "recurrent_activation": (str,), "use_bias": (bool,)}
CELL |= {"reset_after": (bool,), "dropout": NUMBER, "recurrent_dropout": NUMBER}
READ: dict[str, dict[str, tuple[type, ...]]] = {
    "InputLayer": {},
    "GRUCell": CELL,
    "GRU": CELL | {"return_sequences": (bool,), "go_backwards": (bool,)},
    "Bidirectional": {"merge_mode": (str, type(None))},
    "Dropout": {"rate": NUMBER},
    "GlobalAveragePooling1D": {},
    "GlobalMaxPooling1D": {},
    "TimeDistributed": {},
    "Dense": {"units": (int,), "activation": (str,), "use_bias": (bool,)},
}
"""The layers that are read, and the options that are read from their configs, with their types. Others are refused."""
FIXED = {"stateful": False, "time_major": False, "data_format": "channels_last", "keepdims": False}
"""Options that must have this value."""
OLD = {"reset_after": False, "recurrent_dropout": 0.0, "dropout": 0.0, "go_backwards": False, "use_bias": True}
"""Options that the first files of Keras 2 leave out, and their values."""
WEIGHTED = {
    "GRUCell": ("",),
    "GRU": ("cell",),
    "Bidirectional": ("forward_layer.cell", "backward_layer.cell"),
    "Dense": ("",),
    "TimeDistributed": ("layer",),
}
"""The parts of a layer that have weights: paths of attributes, which are also its groups in HDF5."""
REMEDIES = {
    "Masking": "It would be lost: convert keras.Sequential(model.layers[1:]), and pass the grujax model "
    "mask=(x != mask_value).any(-1).",
    "Sequential": "Put its layers into one keras.Sequential.",
    "Functional": "Put its layers into one keras.Sequential.",
    "RNN": "Use keras.layers.GRU.",
    "stateful": "Convert a layer with stateful=False, and pass h0 to grujax.",
    "time_major": "Convert a layer with time_major=False, and pass time_major to grujax.",
}


class Layer(NamedTuple):
    """A Keras layer as plain data.

    kind: a key of `READ`. name: Keras' name of it, for errors. config: the options that are read; a `Bidirectional` has
    those of its GRU too. left: sentences on other options, which only act in training. weights: kernel,
    (recurrent_kernel,) bias under the names for errors; one dict per direction. compute: the dtype of a mixed policy.
    """

    kind: str
    name: str
    config: dict[str, Any]
    left: tuple[str, ...] = ()
    weights: tuple[dict[str, NDArray], ...] = ()
    compute: str = ""

    @property
    def input_size(self) -> int:
        return next(iter(self.weights[0].values())).shape[0]

    @property
    def dtype(self) -> str:
        return next(iter(self.weights[0].values())).dtype.name

    @property
    def shapes(self) -> list[tuple[int | None, ...]]:
        """The shapes of the weights of each direction; None where the layer before decides."""
        if self.kind in HEADS:
            return [(None, self.config["units"]), (self.config["units"],)][: 1 + self.config["use_bias"]]
        if "reset_after" not in self.config:
            return []
        wide = 3 * self.config["units"]
        bias = [(2, wide) if self.config["reset_after"] else (wide,)] * self.config["use_bias"]
        return [(None, wide), (self.config["units"], wide), *bias]


def described(saved: Any, version: int = 3) -> list[Layer]:
    """The layers, without weights, in the config of a layer, a Sequential or a functional chain.

    version: 2 or 3, of the Keras that wrote the config; they name functions and layers differently.

    Raises:
      InputError: names the layer or option that grujax does not have.
    """
    saved = _mapping(saved, "config.json")
    if saved.get("class_name") not in ("Sequential", "Functional"):
        return [_layer(saved, version)]
    module, config = str(saved.get("module", "keras")), saved.get("config")
    config = {"layers": config} if isinstance(config, list) else _mapping(config, "config.json")
    require(module.split(".")[0] == "keras", "config.json", "a model class of Keras", f"a class of {module}")
    layers: Any = config.get("layers")
    require(isinstance(layers, list), "config.json", "a list of layers", type(layers).__name__)
    result = [_layer(layer, version) for layer in layers]
    if saved["class_name"] == "Functional":
        _check_chain(config, layers, result)
    return [layer for layer in result if layer.kind != "InputLayer"]


def dialect_of(reset_after: bool) -> Dialect:
    return DIALECTS["keras" if reset_after else "keras, reset before"]


def _layer(saved: Any, version: int, backwards: bool = False) -> Layer:
    saved = _mapping(saved, "layer")
    config, kind = _mapping(saved.get("config"), "layer"), saved.get("class_name")
    name = str(config.get("name", kind))[:80]
    if not isinstance(kind, str) or kind not in READ:
        raise InputError(name, f"one of {sorted(READ)}", str(kind)[:80], REMEDIES.get(str(kind), FIND))
    own = saved.get("module", "keras.layers") == "keras.layers" and saved.get("registered_name") in (None, kind)
    require(own, name, f"keras.layers.{kind}", f"a {kind} from {str(saved.get('module'))[:80]}")
    if kind == "TimeDistributed":
        inner = _layer(config.get("layer"), version)
        require(inner.kind == "Dense", name, "a Dense inside", inner.kind)
        return inner._replace(kind=kind, name=name)
    config = {**OLD, **config} if version == 2 else config
    read, left = {key: _value(config, key, types, name) for key, types in READ[kind].items()}, _left(config, name)
    for key, value in FIXED.items():
        require_equal(config.get(key, value), value, f"{name}.{key}", REMEDIES.get(key, ""))
    for key in read.keys() & {"activation", "recurrent_activation"}:
        functions = BOTH_VERSIONS | {"hard_sigmoid"} if version == 2 else set(ACTIVATIONS) - {OF_KERAS_2}
        functions = set(OUTPUTS) if kind == "Dense" else functions
        remedy = "grujax has no other functions of Keras."
        require_one_of(read[key], sorted(functions), f"{name}.{key}", remedy)
        if version == 2 and read[key] == "hard_sigmoid":
            read[key] = OF_KERAS_2
    if read.pop("go_backwards", backwards) != backwards:
        remedy = "Reverse the input, or the output of every step, and convert a layer with the other value."
        raise InputError(f"{name}.go_backwards", repr(backwards), repr(not backwards), remedy)
    if kind == "Bidirectional":
        inner = _mapping(config.get("layer"), name)
        turned = {**inner, "config": {**_mapping(inner.get("config"), name), "go_backwards": True}}
        other = config.get("backward_layer", turned if version == 2 else None)
        forward, backward = _layer(inner, version), _layer(other, version, True)
        for direction in (forward, backward):
            require(direction.kind == "GRU", name, "a GRU inside", direction.kind)
        same = forward.config == backward.config
        require(same, name, f"the same options in both directions, {forward.config}", backward.config)
        require_one_of(read["merge_mode"], MERGES, f"{name}.merge_mode")
        return Layer(kind, name, read | forward.config, (*left, *forward.left, *backward.left), (), forward.compute)
    if kind == "Dropout" and config.get("noise_shape") is not None:  # grujax's dropout has no such option
        left.append(f"{name}: it only acts in training, and has a noise_shape")
        read["rate"] = 0.0
    if "units" in read:
        require_count(read["units"], f"{name}.units")
    for key in read.keys() & {"rate", "dropout", "recurrent_dropout"}:
        require(0 <= read[key] <= 1, f"{name}.{key}", "a probability", read[key])
    return Layer(kind, name, read, tuple(left), (), _compute(config, name))


def _left(config: Mapping, name: str) -> list[str]:
    """Sentences on the options of a config that only act in training."""
    trains = [key for key in config if key.endswith(("_regularizer", "_constraint")) and config[key] is not None]
    trains += ["trainable"] * (config.get("trainable") is False)
    return [f"{name}.{key}: it only acts in training" for key in sorted(trains)]


def _compute(config: Mapping, name: str) -> str:
    """The dtype in which a mixed policy computes; "" if it is the dtype of the weights."""
    policy = config.get("dtype")
    policy = _mapping(policy.get("config"), f"{name}.dtype").get("name") if isinstance(policy, Mapping) else policy
    if not str(policy).startswith("mixed_"):
        return ""
    compute = str(policy).removeprefix("mixed_")
    require(compute in COMPUTES, f"{name}.dtype", f"mixed_ and one of {COMPUTES}", str(policy)[:80])
    return compute


def _check_chain(config: Mapping, saved: list, layers: list[Layer]) -> None:
    """Raises `InputError` unless each layer of a functional model reads only the first output of the one before it."""
    remedy = f"Grujax models are chains of layers. {FIND}"
    for k, (config_of_layer, layer) in enumerate(zip(saved, layers, strict=True)):
        first = (layer.kind == "InputLayer") == (k == 0)
        require(first, layer.name, "one Input, as the first layer", layer.kind, remedy)
        nodes: Any = config_of_layer.get("inbound_nodes")
        try:
            reads = [tensor for node in nodes for tensor in _read_by(node)]
        except (TypeError, KeyError, AttributeError, IndexError):
            reads = "something else"
        expected = [[layers[k - 1].name, 0, 0]] if k else []
        require(reads == expected, layer.name, f"only {expected} as its inputs", str(reads)[:200], remedy)
    for key, ends in (("input_layers", layers[:1]), ("output_layers", layers[-1:])):
        expected = [[layer.name, 0, 0] for layer in ends]
        found = config.get(key)
        require(found in (*expected, expected), key, f"only {expected}", str(found)[:200], remedy)


def _read_by(node: Any) -> list[Any]:
    """The tensors that a node of a functional model reads, [layer, 0, 0] each, as written by Keras 3 or older files."""
    if isinstance(node, Mapping):
        tensors = (*node["args"], *filter(None, node["kwargs"].values()))
        return [tensor["config"]["keras_history"] for tensor in tensors]
    return [list(tensor[:3]) if not tensor[3] else tensor for tensor in node]


def _mapping(value: Any, name: str) -> Mapping:
    require(isinstance(value, Mapping), name, "a mapping, as Keras writes it", repr(value)[:80])
    return value


def _value(config: Mapping, key: str, types: tuple[type, ...], name: str) -> Any:
    require(key in config, f"{name}.{key}", "this option", "none of that name")
    value, expected = config[key], " or ".join(cls.__name__ for cls in types)
    fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
    remedy = "Use a function of Keras, by its name." if str in types else ""
    require(fits, f"{name}.{key}", expected, repr(value)[:80], remedy)
    return value
