"""Suggestions for misnamed arguments: a TypeError that says what to write instead of another framework's name."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Set
from typing import NoReturn, TypeVar

from grujax.core.config import own_fields

FOREIGN = {
    "input_size": ("in_features", "input_dim", "input_features", "num_features"),
    "hidden_size": ("features", "units", "num_units", "hidden_features", "hidden_dim", "state_size", "rnn_units"),
    "output_size": ("out_features", "output_dim", "num_classes", "num_outputs"),
    "num_layers": ("layers", "n_layers", "depth"),
    "bias": ("use_bias",),
    "dropout": ("dropout_rate",),
    "reset_after": ("linear_before_reset",),
    "activation": ("activation_fn", "nonlinearity"),
    "gate_activation": ("gate_fn", "recurrent_activation"),
    "merge": ("merge_mode",),
    "reverse": ("go_backwards",),
    "initializer": ("kernel_init", "recurrent_kernel_init", "kernel_initializer", "recurrent_initializer"),
    "lengths": ("seq_lengths", "sequence_lengths", "sequence_length", "seq_lens", "seq_len", "input_lengths"),
    "mask": ("padding_mask", "attention_mask"),
    "resets": ("dones", "reset", "done"),
    "h0": ("initial_carry", "initial_state", "hx", "h_0", "hidden", "state", "carry"),
    "segments": ("segment_ids",),
    "return_state": ("return_carry",),
    "learning_rate": ("lr",),
    "epochs": ("max_iter",),
    "seed": ("random_state",),
    "random_state": ("seed",),
}
"""From grujax's name of an argument to its names in PyTorch, Flax, Keras, ONNX and others."""

INSTEAD = {
    "input_size": "the number of input features is read from x",
    "batch_first": "x is (batch, time, features); with time_major=True it is (time, batch, features)",
    "return_state": "a call always returns (output, h_last)",
    "return_sequences": "GRU returns the output of every step, GRUEncoder and GRUModel do with pooling=None",
    "train": "write deterministic=not train in the call; Equinox: equinox.nn.inference_mode(layer, not train)",
    "training": "write deterministic=not training in the call; Equinox: equinox.nn.inference_mode(layer, not training)",
    "rngs": 'write model.apply(variables, x, rngs={"dropout": key}); Equinox: key=key',
    "direction": "write bidirectional=True, or reverse=True for a layer that reads backwards only",
    "num_directions": "write bidirectional=True",
    "stateful": "pass h_last to the next call as h0",
    "device": "jax.device_put moves x and the variables to a device",
    "unroll": "the implementation decides this itself",
    "output_size": "a GRUModel has a head, of output_size= units",
}
"""Advice for arguments that a module does not have under any name; not used for estimators, which have no call."""


OURS = {theirs: ours for ours, words in FOREIGN.items() for theirs in words}
FLAX = ("self", "parent", "name", "others")
Class = TypeVar("Class", bound=type)


def explained(cls: Class, fields_of: type | None = None) -> Class:
    """Returns `cls` with a constructor that raises a helpful TypeError, for unknown keywords and surplus arguments.

    A subclass that defines its own `__init__` gets the same check if it accepts every argument of `cls`.

    fields_of: the dataclass whose fields the constructor takes as `**fields`.
    """
    accepted = _explain(cls, fields_of)

    @classmethod
    def __init_subclass__(sub, **options) -> None:
        super(cls, sub).__init_subclass__(**options)  # Flax Linen generates a constructor in this call
        if "__init__" in vars(sub) and accepted <= inspect.signature(sub.__init__).parameters.keys():
            _explain(sub)

    setattr(cls, "__init_subclass__", __init_subclass__)  # noqa: B010
    return cls


def _explain(cls: type, fields_of: type | None = None) -> Set[str]:
    """Replaces the constructor of the class by the one that checks, and returns the names that it accepts."""
    constructor = cls.__init__
    signature = inspect.signature(constructor)
    if fields_of is not None:
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = [f for f in own_fields(fields_of) if f.init and f.name not in signature.parameters]
        parameters += [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields]
        signature = signature.replace(parameters=parameters)
    accepted = signature.parameters
    names = [p.name for p in accepted.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in FLAX]
    parts = {p.name: _arguments(type(p.default)) for p in accepted.values() if dataclasses.is_dataclass(p.default)}

    @functools.wraps(constructor)
    def __init__(self, *args, **fields) -> None:
        if len(args) > len(names):
            raise TypeError(_surplus(type(self), names, args))
        for word in fields:
            if word not in accepted:
                name, call = type(self).__name__, cls.__call__
                elsewhere = {f"write {part}=replace({name}.{part}, {{}}=...)": of for part, of in parts.items()}
                if inspect.isfunction(call):
                    elsewhere["{}= belongs to the call"] = _arguments(call)
                _refuse(name, word, _arguments(cls.__init__), elsewhere, INSTEAD if inspect.isfunction(call) else {})
        constructor(self, *args, **fields)

    setattr(__init__, "__signature__", signature)  # noqa: B010, frameworks read the parameters from it
    setattr(cls, "__init__", __init__)  # noqa: B010, pyright forbids a plain assignment to a method
    return accepted.keys()


def refuse_others(module: object, others: Iterable[str]) -> None:
    """Raises a TypeError that says what to write, if a call has keyword arguments that the module does not know."""
    cls = type(module)
    for word in others:
        elsewhere = {"{}= belongs to the constructor": _arguments(cls.__init__)}
        _refuse(cls.__name__, word, _arguments(cls.__call__), elsewhere, INSTEAD)


def _refuse(
    name: str, word: str, here: list[str], elsewhere: Mapping[str, list[str]], instead: Mapping[str, str]
) -> NoReturn:
    """Raises the TypeError for the unknown keyword `word` of `name`, with the best suggestion.

    Args:
      here: the arguments that are accepted.
      elsewhere: by suggestion, with `{}` for the argument's name, the arguments that are accepted in another place.
      instead: advice for arguments that are accepted nowhere.
    """
    places, words = {"write {}=": here, **elsewhere}, (OURS.get(word, word), word)
    suggestions = [text.format(ours) for text, names in places.items() for ours in words if ours in names]
    suggestions += [instead[ours] for ours in reversed(words) if ours in instead]
    for text, names in places.items():
        suggestions += map(text.format, difflib.get_close_matches(word, names, 1, 0.7))
    suggestions.append(f"it takes {', '.join(here)}")
    raise TypeError(f"{name} takes no {word}= here: {suggestions[0]}.")


def _surplus(cls: type, names: list[str], args: tuple) -> str:
    if not names:
        first, *_ = _arguments(cls.__init__)
        return f"{cls.__name__} takes no argument by position; write {cls.__name__}({first}={args[0]!r:.30}, ...)."
    reason = ": the number of input features is read from x" if names[0] == "hidden_size" else ""
    values = args[1:] if reason else args  # torch.nn.GRU(input_size, hidden_size)
    fields = ", ".join(f"{name}={value!r:.30}" for name, value in zip(names, values, strict=False))
    rest = " Pass other fields by name: num_layers=2." if hasattr(cls, "num_layers") else ""
    return f"{cls.__name__} takes only {', '.join(names)} by position; write {cls.__name__}({fields}){reason}.{rest}"


def _arguments(function: Callable) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in FLAX]
