"""What a program computes, found by trying: of all models that its weights can be, the one that gives the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax import equations
from grujax.core.config import MERGES, OUTPUT_ACTIVATIONS
from grujax.errors import InputError
from grujax.interop.prove import FIND, agreed, difference, log, outputs
from grujax.linen import GRU, GRUCell, GRUModel
from grujax.types import Array

NEAR = 1e-3
"""What a hypothesis may be apart, in units of the outputs' rms, and still be tried; the tolerance table decides."""


def softmax(y: NDArray) -> NDArray:
    raised = np.exp(y - y.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


IN_NUMPY = {None: lambda y: y, "sigmoid": equations.sigmoid, "softmax": softmax}
"""Output activations in float64, without a program of JAX for each shape."""
assert IN_NUMPY.keys() == {None, *OUTPUT_ACTIVATIONS}

Forms = dict[str, list[NDArray]]
Places = list[tuple[str, int]]
"""Of each array that a program gives: which output it is, and in which of its forms."""


def last_output(output: Array, valid: Array) -> Array:
    """A pooling: the output of the last valid step, of both directions; the reverse one has read that step alone."""
    last = jnp.maximum(valid.sum(-1) - 1, 0)
    return jnp.take_along_axis(output, last[..., None, None], axis=-2)[..., 0, :]


class Seen(NamedTuple):
    """What a program gave for (x, h0, lengths), or why nothing."""

    given: tuple
    arrays: list[NDArray] | InputError


class Reading(NamedTuple):
    """A model that may be the one, and what its program would show."""

    words: str
    fields: dict[str, Any]
    forms: Forms


def forms(model: Any, given: Mapping[str, Any]) -> Forms:
    """What a program may show of the outputs of a model, batch first or time first, layers or directions apart."""
    of = {name: np.asarray(a).astype(np.float64) for name, a in given.items()}
    h_last, directions = of["h_last"], getattr(model, "num_directions", 1)
    if isinstance(model, GRUCell):
        return {"h_last": [h_last]}
    found = {"h_last": [h_last, h_last.swapaxes(0, 1), *np.split(h_last, model.num_layers), *h_last]}
    for name in of.keys() & {"output", "y"}:
        a = of[name]
        found[name] = [a] if a.ndim == 2 else [a, *a] if a.ndim == 4 else [a, a.swapaxes(0, 1)]
    if "output" in of and model.merge == "concat":
        apart = of["output"].reshape(*of["output"].shape[:2], directions, -1)
        found["output"] += [np.concatenate([*h_last[-directions:]], -1), apart.transpose(1, 2, 0, 3), apart]
    elif "output" in of and model.merge is not None:
        found["output"].append(MERGES[model.merge](*h_last[-directions:]))
    return found


def readings(model: Any, variables: Mapping, given: tuple) -> Iterator[Reading]:
    """Every model that a GRU and its head can be, in 32 bits at least: what rounds is not asked here."""
    if jnp.finfo(model.param_dtype).bits == 16:
        model = model.clone(param_dtype=jnp.float32)
        variables, x = jax.tree.map(lambda a: a.astype(jnp.float32), (variables, given[0]))
        given = (x, *given[1:])
    if not isinstance(model, GRUModel):
        yield Reading("the output of every step", {}, forms(model, outputs(model, variables, *given)))
        return
    gru = GRU(**model.fields_of(GRU))
    head = {key: np.asarray(a, np.float64) for key, a in variables["params"]["head"].items()}
    of_gru = forms(gru, outputs(gru, {"params": variables["params"]["encoder"]["gru"]}, *given))
    (output, *_), (h_last, *_), lengths = of_gru["output"], of_gru["h_last"], given[2]
    steps = np.full((len(output), 1), output.shape[1]) if lengths is None else np.asarray(lengths)[:, None]
    valid = (np.arange(output.shape[1]) < steps)[..., None]
    poolings = {
        "last": ("the last state", np.concatenate([*h_last[-gru.num_directions :]], -1)),
        None: ("every step", output),
        "mean": ("the mean over time", (output * valid).sum(1) / steps),
        "max": ("the maximum over time", np.where(valid, output, -np.inf).max(1)),
        last_output: ("the last step's output", output[np.arange(len(output)), steps[:, 0] - 1]),
    }
    for pooling, (words, features) in poolings.items():
        for activation, f in IN_NUMPY.items():
            y = f(features @ head["kernel"] + head["bias"]) * (valid if pooling is None else 1)
            behind = f", {activation} behind it" if activation else ""
            fields = {"pooling": pooling, "output_activation": activation}
            shown = {"y": [y, y.swapaxes(0, 1)] if pooling is None else [y], "h_last": of_gru["h_last"]}
            yield Reading(f"Linear on {words}{behind}", fields, shown)


def read_by_running(
    argument: str,
    model: Any,
    variables: Mapping,
    layouts: Sequence[Sequence[Seen]],
    serves: Callable[[int, Any, Places], bool] = lambda *_: True,
) -> tuple[int, Any]:
    """The first layout of the data in which one reading agrees with all that was seen; and the model of that reading.

    Args:
      model: the GRU or, with a head, a model whose pooling and output activation are to be found.
      layouts: for each what the program gave, of data of two sizes.
      serves: whether a reading is wanted, by the layout, its pooling and what was read as what.

    Raises:
      InputError: the clearest refusal of all, the differences in it.
    """
    refusals, near = [], NEAR * (10 if jnp.finfo(model.param_dtype).bits == 16 else 1)
    for layout, all_seen in enumerate(layouts):
        try:
            reading = None
            for given, arrays in all_seen:
                if isinstance(arrays, InputError):
                    raise arrays
                candidates = [
                    of for of in readings(model, variables, given) if not reading or of.words == reading.words
                ]
                reading = _nearest(argument, arrays, candidates, partial(serves, layout), near)
        except InputError as error:
            refusals.append(error)
            continue
        assert reading is not None
        found = model.clone(**reading.fields)
        require_shown(argument, found, variables, all_seen)
        log.info("read as: %s", reading.words)
        return layout, found
    raise max(refusals, key=lambda error: ("off by" in error.found, "another function" in error.found))


def require_shown(argument: str, model: Any, variables: Mapping, all_seen: Sequence[Seen]) -> None:
    """Raises `InputError` unless all that a program gave are outputs of the model, whichever they are."""
    found = []
    for given, arrays in all_seen:
        assert not isinstance(arrays, InputError)

        def shown(ours: Mapping, arrays: list[NDArray] = arrays) -> dict[str, NDArray]:
            of = forms(model, ours)
            return {f"output {k}": of[name][form].squeeze() for k, (name, form) in enumerate(matched(arrays, of)[1])}

        theirs = {f"output {k}": np.squeeze(a) for k, a in enumerate(arrays)}
        found.append(difference(model, variables, given, theirs, shown))
    agreed(found, argument)


def matched(arrays: Sequence[NDArray], candidates: Forms) -> tuple[float, Places]:
    """The form that each array is nearest to, and how far the farthest is away."""
    all_forms = [(name, k, form) for name, of in candidates.items() for k, form in enumerate(of)]
    best = [min((apart(a, form), name, k) for name, k, form in all_forms) for a in arrays]
    return max((of for of, *_ in best), default=np.inf), [(name, k) for _, name, k in best]


def _nearest(
    argument: str,
    arrays: Sequence[NDArray],
    candidates: Sequence[Reading],
    serves: Callable[[Any, Places], bool],
    near: float,
) -> Reading:
    """The reading that all arrays agree with; `InputError` with the differences where there is none."""
    tried: list[tuple[float, Reading]] = []
    for reading in candidates:
        differs, places = matched(arrays, reading.forms)
        whole = "y" not in reading.forms or any(name == "y" for name, _ in places)
        tried.append((differs if whole and serves(reading.fields.get("pooling"), places) else np.inf, reading))
    tried.sort(key=lambda one: one[0])  # of several that agree the first
    if tried[0][0] < near:
        return tried[0][1]
    shown = [f"{reading.words}: {of:.2g}" for of, reading in tried[:4] if np.isfinite(of)]
    differences = f"off by, relative to the rms, {', '.join(shown)}" if shown else "its outputs have other shapes"
    raise InputError(argument, "what a model of grujax computes", f"another function ({differences})", FIND)


def apart(theirs: NDArray, form: NDArray) -> float:
    """The largest difference, in units of the rms, axes of one aside; infinite where shapes differ."""
    a, e = np.asarray(theirs).astype(np.float64).squeeze(), form.squeeze()
    if a.shape != e.shape or not a.size:
        return np.inf
    scale = max(float(np.sqrt((e**2).mean())), 1e-3)
    return float(np.nan_to_num(np.abs(a - e).max() / scale, nan=np.inf))
