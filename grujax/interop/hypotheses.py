"""What a program computes, found by trying: of all models that its weights can be, the one that gives the same."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.core.config import OUTPUT_ACTIVATIONS
from grujax.errors import InputError, require
from grujax.interop.parts import Dense
from grujax.interop.prove import FIND, outputs
from grujax.linen import GRU, GRUModel
from grujax.types import Array

NEAR = 1e-3
"""What a hypothesis may be apart, in units of the outputs' rms, and still be tried; the tolerance table decides."""


def last_output(output: Array, valid: Array) -> Array:
    """A pooling: the output of the last valid step, of both directions; the reverse one has read that step alone."""
    last = jnp.maximum(valid.sum(-1) - 1, 0)
    return jnp.take_along_axis(output, last[..., None, None], axis=-2)[..., 0, :]


class Reading(NamedTuple):
    """A model that may be the one; `forms` by the names of `Runner`: the arrays that its program would show."""

    words: str
    fields: dict[str, Any]
    forms: dict[str, list[NDArray]]


class Chosen(NamedTuple):
    """The reading that agrees, and of each array of the other side which output of the model it is, as which form."""

    reading: Reading
    names: list[tuple[str, int]]

    def outputs(self, arrays: Sequence[NDArray], size: tuple[int, int]) -> dict[str, NDArray]:
        """The arrays of a program as the model gives them, by the names of `Runner`, parts of outputs left out."""
        found, (rows, steps) = {}, size
        for (name, k), a in zip(self.names, arrays, strict=True):
            form = self.reading.forms[name][k]
            if name == "h_last":
                found |= {name: a.reshape(-1, rows, form.shape[-1])} if k == 0 else {}
            elif form.ndim == 2:
                found |= {name: a.reshape(rows, -1)} if k == 0 else {}
            elif k in (0, 3):
                found[name] = a.reshape(rows, steps, -1)
            elif k == 1:
                found[name] = a.reshape(steps, rows, -1).swapaxes(0, 1)
            else:
                found[name] = a.reshape(steps, -1, rows, form.shape[-1]).transpose(2, 0, 1, 3).reshape(rows, steps, -1)
        require(bool(found), "source", "a whole output", "parts of one", FIND)
        return found


class Seen(NamedTuple):
    """What a program gave for (x, h0, lengths), or why nothing."""

    given: tuple
    arrays: list[NDArray] | InputError

    @property
    def shown(self) -> list[NDArray]:
        """The arrays; raises where there are none."""
        if isinstance(self.arrays, InputError):
            raise self.arrays
        return self.arrays


def encoder_of(model: Any, variables: Mapping) -> tuple[GRU, dict]:
    """The GRU of a model and its variables; of a GRU itself."""
    if not isinstance(model, GRUModel):
        return model, dict(variables)
    return GRU(**model.fields_of(GRU)), {"params": variables["params"]["encoder"]["gru"]}


def tried(
    argument: str,
    gru: tuple[GRU, Mapping],
    head: tuple[str, Dense] | None,
    layouts: Sequence[Sequence[Seen]],
    serves: Callable[[int, Chosen], bool] = lambda layout, chosen: True,
    near: float = NEAR,
) -> tuple[int, list[Chosen]]:
    """The first of several layouts of the data in which one reading agrees with all that was seen, and as what.

    Args:
      gru: the GRU and its variables.
      layouts: for each what the program gave, of data of two sizes.
      serves: whether a reading is wanted.

    Raises:
      InputError: the clearest refusal of all, the differences in it.
    """
    refusals = []
    for layout, all_seen in enumerate(layouts):
        chosen: list[Chosen] = []
        try:
            for seen in all_seen:
                ours = outputs(*gru, *seen.given) | {"lengths": seen.given[2]}
                candidates = readings(gru[0], ours, *(head[1] if head else (None, None)))
                same = (r for r in candidates if not chosen or r.words == chosen[0].reading.words)
                chosen.append(_nearest(argument, seen.shown, same, near, partial(serves, layout)))
            return layout, chosen
        except InputError as error:
            refusals.append(error)
    raise max(refusals, key=lambda error: ("off by" in error.found, "another function" in error.found))


def _nearest(
    argument: str,
    found: Sequence[NDArray],
    candidates: Iterable[Reading],
    near: float,
    serves: Callable[[Chosen], bool],
) -> Chosen:
    """The reading that all arrays which a program gives agree with; `InputError` with the differences otherwise."""
    tried = []
    for reading in candidates:
        forms = [(name, k, form) for name, of in reading.forms.items() for k, form in enumerate(of)]
        best = [min((apart(a, form), name, k) for name, k, form in forms) for a in found]
        chosen = Chosen(reading, [(name, k) for _, name, k in best])
        whole = any(name != "h_last" for name, _ in chosen.names) or "y" not in reading.forms
        differs = max((of for of, *_ in best), default=np.inf)
        tried.append((differs if whole and serves(chosen) else np.inf, chosen))
    tried.sort(key=lambda one: one[0])  # of several that agree the first
    if tried and tried[0][0] < near:
        return tried[0][1]
    shown = [f"{chosen.reading.words}: {of:.2g}" for of, chosen in tried[:4] if np.isfinite(of)]
    differences = f"off by, relative to the rms, {', '.join(shown)}" if shown else "its outputs have other shapes"
    raise InputError(argument, "what a model of grujax computes", f"another function ({differences})", FIND)


def readings(gru: Any, given: Mapping[str, Any], kernel: NDArray | None, bias: NDArray | None) -> Iterator[Reading]:
    """Every model that a GRU and its head can be; given: what the GRU gives, `output` (B, T, D*H), `h_last`."""
    output, h_last = (np.asarray(given[name]).astype(np.float64) for name in ("output", "h_last"))
    directions, lengths = gru.num_directions, given.get("lengths")
    length = output.shape[1] if lengths is None else np.asarray(lengths)[:, None]
    valid = np.arange(output.shape[1]) < np.broadcast_to(length, (len(output), 1))
    states = {"h_last": [h_last, h_last.swapaxes(0, 1), *np.split(h_last, gru.num_layers), *h_last]}
    top = np.concatenate([*h_last[-directions:]], -1)
    if kernel is None:
        apart = output.reshape(*output.shape[:2], directions, -1)
        shown = [output, output.swapaxes(0, 1), apart.transpose(1, 2, 0, 3), apart, top]
        yield Reading("the output of every step", {}, states | {"output": shown})
        return
    poolings = {
        "last": ("the last state", top),
        None: ("every step", output),
        "mean": ("the mean over time", (output * valid[..., None]).sum(1) / valid.sum(1)[:, None]),
        "max": ("the maximum over time", np.where(valid[..., None], output, -np.inf).max(1)),
        last_output: ("the last step's output", output[np.arange(len(output)), valid.sum(1) - 1]),
    }
    for pooling, (words, features) in poolings.items():
        y = features @ kernel.astype(np.float64) + (0 if bias is None else bias.astype(np.float64))
        for activation, f in {None: lambda y: y, **OUTPUT_ACTIVATIONS}.items():
            a = np.asarray(f(y)) * (valid[..., None] if pooling is None else 1)
            shown = [a, a.swapaxes(0, 1)] if pooling is None else [a]
            behind = f", {activation} behind it" if activation else ""
            fields = {"pooling": pooling, "output_activation": activation}
            yield Reading(f"Linear on {words}{behind}", fields, states | {"y": shown})


def apart(theirs: NDArray, form: NDArray) -> float:
    """The largest difference, in units of the rms, axes of one aside; infinite where shapes differ."""
    a, e = np.asarray(theirs).astype(np.float64).squeeze(), form.squeeze()
    if a.shape != e.shape or not a.size:
        return np.inf
    scale = max(float(np.sqrt((e**2).mean())), 1e-3)
    return float(np.nan_to_num(np.abs(a - e).max() / scale, nan=np.inf))
