"""Names that other frameworks give an argument: a TypeError says what to write instead."""

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
"""Our name of an argument: those of PyTorch, Flax, Keras, ONNX and others."""

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
    "unroll": "the implementation chooses it",
    "output_size": "a GRUModel has a head, of output_size= units",
}
"""What to do where a module has no argument of that meaning; estimators, which have no call, have none of it."""


OURS = {theirs: ours for ours, words in FOREIGN.items() for theirs in words}
FLAX = ("self", "parent", "name", "others")
Class = TypeVar("Class", bound=type)


def explained(cls: Class, fields_of: type | None = None) -> Class:
    """`cls` with a constructor whose TypeError, for a surplus positional argument or another word, says what to
    write; likewise its subclasses that take all that it takes.

    fields_of: the dataclass whose fields its `**fields` are.
    """
    accepted = _explain(cls, fields_of)

    @classmethod
    def __init_subclass__(sub, **options) -> None:
        super(cls, sub).__init_subclass__(**options)  # where Flax Linen writes a constructor of its own
        if "__init__" in vars(sub) and accepted <= inspect.signature(sub.__init__).parameters.keys():
            _explain(sub)

    setattr(cls, "__init_subclass__", __init_subclass__)  # noqa: B010
    return cls


def _explain(cls: type, fields_of: type | None = None) -> Set[str]:
    """Gives the class that constructor; the names that it takes."""
    made = cls.__init__
    signature = inspect.signature(made)
    if fields_of is not None:
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        given = [f for f in own_fields(fields_of) if f.init and f.name not in signature.parameters]
        own += [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in given]
        signature = signature.replace(parameters=own)
    accepted = signature.parameters
    names = [p.name for p in accepted.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in FLAX]
    parts = {p.name: _arguments(type(p.default)) for p in accepted.values() if dataclasses.is_dataclass(p.default)}

    @functools.wraps(made)
    def __init__(self, *args, **fields) -> None:
        if len(args) > len(names):
            raise TypeError(_surplus(type(self), names, args))
        for word in fields:
            if word not in accepted:
                name, call = type(self).__name__, cls.__call__
                within = {f"write {part}=replace({name}.{part}, {{}}=...)": of for part, of in parts.items()}
                if inspect.isfunction(call):
                    within["{}= belongs to the call"] = _arguments(call)
                _refuse(name, word, _arguments(cls.__init__), within, INSTEAD if inspect.isfunction(call) else {})
        made(self, *args, **fields)

    setattr(__init__, "__signature__", signature)  # noqa: B010, which frameworks read parameters from
    setattr(cls, "__init__", __init__)  # noqa: B010, pyright knows no method that may be assigned
    return accepted.keys()


def refuse_others(module: object, others: Iterable[str]) -> None:
    """Raises TypeError where a call has keyword arguments that are not ours, saying what to write."""
    cls = type(module)
    for word in others:
        elsewhere = {"{}= belongs to the constructor": _arguments(cls.__init__)}
        _refuse(cls.__name__, word, _arguments(cls.__call__), elsewhere, INSTEAD)


def _refuse(
    name: str, word: str, here: list[str], elsewhere: Mapping[str, list[str]], instead: Mapping[str, str]
) -> NoReturn:
    """elsewhere: what to write of an argument `{}` that is none here, and those arguments."""
    places, words = {"write {}=": here, **elsewhere}, (OURS.get(word, word), word)
    what = [write.format(ours) for write, names in places.items() for ours in words if ours in names]
    what += [instead[ours] for ours in reversed(words) if ours in instead]
    for write, names in places.items():
        what += map(write.format, difflib.get_close_matches(word, names, 1, 0.7))
    what.append(f"it takes {', '.join(here)}")
    raise TypeError(f"{name} takes no {word}= here: {what[0]}.")


def _surplus(cls: type, names: list[str], args: tuple) -> str:
    if not names:
        first, *_ = _arguments(cls.__init__)
        return f"{cls.__name__} takes no argument by position; write {cls.__name__}({first}={args[0]!r:.30}, ...)."
    reads = ": the number of input features is read from x" if names[0] == "hidden_size" else ""
    values = args[1:] if reads else args  # torch.nn.GRU(input_size, hidden_size)
    fields = ", ".join(f"{name}={value!r:.30}" for name, value in zip(names, values, strict=False))
    rest = " Other fields need their names: num_layers=2." if hasattr(cls, "num_layers") else ""
    return f"{cls.__name__} takes {', '.join(names)} alone by position; write {cls.__name__}({fields}){reads}.{rest}"


def _arguments(function: Callable) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in FLAX]
