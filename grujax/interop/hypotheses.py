"""Identifies what a program computes: tries all models that its weights may belong to, and keeps one that agrees."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import MERGES, OUTPUT_ACTIVATIONS
from grujax.errors import InputError
from grujax.interop.prove import FIND, agreed, computed, difference, log
from grujax.linen import GRU, GRUCell, GRUModel
from grujax.types import Array

NEAR = 1e-3
"""The largest difference of a candidate, in units of the outputs' rms; then the tolerance table decides."""

Forms = dict[str, list[NDArray]]
"""Arrays that a program may return, by the output that they show."""
Places = list[tuple[str, int]]
"""For each array that a program returned, the output that it shows and the index of its form."""


def last_output(output: Array, valid: Array) -> Array:
    """A pooling: the output of the last valid step of both directions; the reverse one has read only that step."""
    last = jnp.maximum(valid.sum(-1) - 1, 0)
    return jnp.take_along_axis(output, last[..., None, None], axis=-2)[..., 0, :]


class Seen(NamedTuple):
    """One run of a program. given: (x, h0, lengths). arrays: the outputs, or the reason why there are none."""

    given: tuple
    arrays: list[NDArray] | InputError


class Reading(NamedTuple):
    """A candidate: its description, its fields of the model, and the arrays that its program would return."""

    words: str
    fields: dict[str, Any]
    forms: Forms


def forms(model: Any, given: Mapping[str, Any]) -> Forms:
    """The forms in which a program may return a model's outputs: batch or time first, layers or directions apart."""
    outputs = {name: np.asarray(a).astype(np.float64) for name, a in given.items()}
    h_last, directions = outputs["h_last"], getattr(model, "num_directions", 1)
    if isinstance(model, GRUCell):
        return {"h_last": [h_last]}
    result = {"h_last": [h_last, h_last.swapaxes(0, 1), *np.split(h_last, model.num_layers), *h_last]}
    for name in outputs.keys() & {"output", "y"}:
        a = outputs[name]
        result[name] = [a] if a.ndim == 2 else [a, *a] if a.ndim == 4 else [a, a.swapaxes(0, 1)]
    if "output" in outputs and model.merge == "concat":
        apart = outputs["output"].reshape(*outputs["output"].shape[:2], directions, -1)
        result["output"] += [np.concatenate([*h_last[-directions:]], -1), apart.transpose(1, 2, 0, 3), apart]
    elif "output" in outputs and model.merge is not None:
        result["output"].append(MERGES[model.merge](*h_last[-directions:]))
    return result


def readings(model: Any, variables: Mapping, given: tuple) -> Iterator[Reading]:
    """Every model that a GRU and its head may form, computed in 32 bits at least: rounding is checked later."""
    if jnp.finfo(model.param_dtype).bits == 16:
        model = model.clone(param_dtype=jnp.float32)
        variables, x = jax.tree.map(lambda a: a.astype(jnp.float32), (variables, given[0]))
        given = (x, *given[1:])
    if not isinstance(model, GRUModel):
        yield Reading("the output of every step", {}, forms(model, computed(model, variables, *given)))
        return
    gru = GRU(**model.fields_of(GRU))
    head = {key: np.asarray(a, np.float64) for key, a in variables["params"]["head"].items()}
    states = forms(gru, computed(gru, {"params": variables["params"]["encoder"]["gru"]}, *given))
    (output, *_), (h_last, *_), lengths = states["output"], states["h_last"], given[2]
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
        plain = features @ head["kernel"] + head["bias"]
        for activation, activated in {None: plain, **jax.device_get(_activated(plain))}.items():
            y = activated * (valid if pooling is None else 1)
            after = f", then {activation}" if activation else ""
            fields = {"pooling": pooling, "output_activation": activation}
            shown = {"y": [y, y.swapaxes(0, 1)] if pooling is None else [y], "h_last": states["h_last"]}
            yield Reading(f"Linear on {words}{after}", fields, shown)


@jax.jit
def _activated(y: Array) -> dict[str, Array]:
    return {name: activation(y) for name, activation in OUTPUT_ACTIVATIONS.items()}


def read_by_running(
    argument: str,
    model: Any,
    variables: Mapping,
    layouts: Sequence[Sequence[Seen]],
    serves: Callable[[int, Any, Places], bool] = lambda *_: True,
) -> tuple[int, Any]:
    """The index of the first layout of x in which one candidate agrees with all runs, and the model of that candidate.

    Args:
      model: a GRU or, with a head, a model whose pooling and output activation are unknown.
      layouts: for each layout of x (batch or time first), runs of the program on data of several sizes.
      serves: whether a candidate is acceptable, by the layout, its pooling and the places of the outputs.

    Raises:
      InputError: no candidate agrees; the clearest of the refusals, with the differences.
    """
    refusals, near = [], NEAR * (10 if jnp.finfo(model.param_dtype).bits == 16 else 1)
    for layout, all_seen in enumerate(layouts):
        try:
            reading = None
            for given, arrays in all_seen:
                if isinstance(arrays, InputError):
                    raise arrays
                candidates = readings(model, variables, given)
                candidates = [c for c in candidates if reading is None or c.words == reading.words]
                reading = _nearest(argument, arrays, candidates, partial(serves, layout), near)
        except InputError as error:
            refusals.append(error)
            continue
        assert reading is not None
        result = model.clone(**reading.fields)
        require_shown(argument, result, variables, all_seen)
        log.info("read as: %s", reading.words)
        return layout, result
    raise max(refusals, key=lambda error: ("off by" in error.found, "another function" in error.found))


def require_shown(argument: str, model: Any, variables: Mapping, all_seen: Sequence[Seen]) -> None:
    """Raises `InputError` unless each array that a program returned is one of the model's outputs."""
    differences = []
    for given, arrays in all_seen:
        assert not isinstance(arrays, InputError)

        def shown(ours: Mapping, arrays: list[NDArray] = arrays) -> dict[str, NDArray]:
            shapes = forms(model, ours)
            places = matched(arrays, shapes)[1]
            return {f"output {k}": shapes[name][form].squeeze() for k, (name, form) in enumerate(places)}

        theirs = {f"output {k}": np.squeeze(a) for k, a in enumerate(arrays)}
        differences.append(difference(model, variables, given, theirs, shown))
    agreed(differences, argument)


def matched(arrays: Sequence[NDArray], candidates: Forms) -> tuple[float, Places]:
    """The largest distance of an array from its nearest form, and the place of the nearest form of each array."""
    all_forms = [(name, k, form) for name, group in candidates.items() for k, form in enumerate(group)]
    best = [min((apart(a, form), name, k) for name, k, form in all_forms) for a in arrays]
    return max((distance for distance, *_ in best), default=np.inf), [(name, k) for _, name, k in best]


def _nearest(
    argument: str,
    arrays: Sequence[NDArray],
    candidates: Sequence[Reading],
    serves: Callable[[Any, Places], bool],
    near: float,
) -> Reading:
    """The candidate that agrees with all arrays; raises `InputError` with the differences if there is none."""
    tried: list[tuple[float, Reading]] = []
    for reading in candidates:
        distance, places = matched(arrays, reading.forms)
        whole = "y" not in reading.forms or any(name == "y" for name, _ in places)
        tried.append((distance if whole and serves(reading.fields.get("pooling"), places) else np.inf, reading))
    tried.sort(key=lambda pair: pair[0])  # stable: of equal ones the first
    if tried[0][0] < near:
        return tried[0][1]
    shown = [f"{reading.words}: {distance:.2g}" for distance, reading in tried[:4] if np.isfinite(distance)]
    differences = f"off by, relative to the rms, {', '.join(shown)}" if shown else "its outputs have other shapes"
    raise InputError(argument, "a function that a grujax model computes", f"another function ({differences})", FIND)


def apart(theirs: NDArray, form: NDArray) -> float:
    """The largest difference in units of the rms, ignoring axes of size 1; infinite if the shapes differ."""
    a, e = np.asarray(theirs).astype(np.float64).squeeze(), form.squeeze()
    if a.shape != e.shape or not a.size:
        return np.inf
    scale = max(float(np.sqrt((e**2).mean())), 1e-3)
    return float(np.nan_to_num(np.abs(a - e).max() / scale, nan=np.inf))
