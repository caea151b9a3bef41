"""Checks every peer against the oracle and times those with correct results, alternately."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import CASES, Arrays, Case, make_arrays
from grujax.bench.machine import device, git, versions
from grujax.bench.oracle import Gradients, oracle
from grujax.bench.peers import PEERS, Peer, implementations
from grujax.bench.peers.peer import Thunk, Unavailable
from grujax.bench.products import products
from grujax.bench.report import BACKWARD, FORWARD, LIMIT, PASSES, Report, Result
from grujax.errors import require
from grujax.testing.tolerances import Kind, tolerances_used

KINDS: dict[str, Kind] = {FORWARD: "forward", BACKWARD: "gradient"}
MOST_ROUNDS = 200


@dataclass(frozen=True)
class Options:
    """The options of a benchmark run, on the CPU or on the GPU that JAX finds.

    Attributes:
      shapes: The cases.
      peers: The GRUs. On a GPU, "grujax" adds each of its implementations for the GPU, named like "grujax xla".
      repeats: The least number of times that each call is timed.
      seconds: Each call is timed until its times add up to this, but at most 200 times.
    """

    shapes: tuple[str, ...] = tuple(CASES)
    peers: tuple[str, ...] = tuple(PEERS)
    repeats: int = 7
    seconds: float = 1.0


def run(options: Options, say: Callable[[str], object] = lambda line: None) -> Report:
    """Measures the cases and peers of `options`; `say` gets a line for each case. Ctrl-C ends it after whole cases.

    Raises:
      InputError: for unknown cases or peers, `repeats` below 1 and `seconds` below 0.
    """
    for argument, names, known in (("shapes", options.shapes, CASES), ("peers", options.peers, PEERS)):
        unknown = [name for name in names if name not in known]
        require(not unknown, argument, f"names from {list(known)}", unknown)
    require(options.repeats > 0, "repeats", "a positive integer", options.repeats)
    require(options.seconds >= 0, "seconds", "0 or more", options.seconds)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    measured_on = device()
    commit, dirty = git("rev-parse", "HEAD") or "unknown", bool(git("status", "--porcelain"))
    peers = {name: PEERS[name] for name in options.peers}
    if "grujax" in peers:
        peers |= implementations(jax.default_backend())
    results: list[Result] = []
    done: list[str] = []
    # full float32, as in torch (`torch_device`); on the CPU there is nothing to choose
    with jax.default_matmul_precision("highest" if jax.default_backend() == "gpu" else None):
        try:
            for name in options.shapes:
                say(str(CASES[name]))
                results += measure(CASES[name], peers, options.repeats, threads, options.seconds)
                done.append(name)
        except KeyboardInterrupt:
            if not done:
                raise
            say(f"interrupted: {len(done)} of {len(options.shapes)} cases were measured")
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"),
        commit,
        dirty,
        measured_on,
        {"python": platform.python_version()} | versions(peers.values()),
        threads,
        {name: asdict(CASES[name]) for name in done},
        tuple(results),
    )


def measure(case: Case, peers: dict[str, Peer], repeats: int, threads: int, seconds: float = 0.0) -> list[Result]:
    """Measures every peer and the limit on one case. A peer that is missing or wrong gets a reason instead of times."""
    arrays = make_arrays(case)
    expected = {mode: oracle(arrays, mode) for mode in sorted({peer.reset_after for peer in peers.values()})}
    traits = (jax.default_backend(), *case.traits)
    prepared = {n: prepare(p, arrays, threads, *expected[p.reset_after], traits=traits) for n, p in peers.items()}
    limits = products(arrays, threads)
    results = []
    for kind in PASSES:
        thunks: dict[Any, Thunk] = {n: t for n, p in prepared.items() if not isinstance(t := p[kind], str)}
        thunks |= {(LIMIT, library): both[PASSES.index(kind)] for library, both in limits.items()}
        times = interleave(thunks, repeats, seconds)
        for name in peers:
            status = prepared[name][kind]
            results.append(_result(case, name, kind, times[name] if name in times else str(status)))
        limit_times = [times[LIMIT, library] for library in limits]
        results.append(_result(case, LIMIT, kind, min(limit_times, key=statistics.median, default="no library")))
    return results


def _result(case: Case, peer: str, kind: str, times: tuple[float, ...] | str) -> Result:
    if isinstance(times, str):
        return Result(case.name, peer, kind, times)
    return Result(case.name, peer, kind, "measured", round(statistics.median(times), 4), times)


def prepare(
    peer: Peer, a: Arrays, threads: int, hs: NDArray, gradients: Gradients, traits: tuple[str, ...] = ()
) -> dict[str, Thunk | str]:
    """Returns for each pass the call to time, already run and compared with the oracle, or why there is none."""
    if reason := peer.refuses(traits) or peer.missing():
        return dict.fromkeys(PASSES, reason)
    try:
        runs = peer.build(a, threads)
    except Unavailable as error:
        return dict.fromkeys(PASSES, str(error))
    dtype, valid = a.x.dtype.name, a.valid[..., None]
    outputs = runs.read_hs(runs.forward())
    if outputs.shape == hs.shape:
        outputs = np.where(valid, outputs, outputs.dtype.type(0))  # the values in the padding are undefined
    reason = unequal({"hs": outputs}, {"hs": hs}, FORWARD, dtype)
    prepared: dict[str, Thunk | str] = {FORWARD: reason or runs.forward}
    if runs.gradients is None or runs.read_gradients is None:
        return prepared | {BACKWARD: "forward only"}
    found, expected = (g.named(a.num_directions) for g in (runs.read_gradients(runs.gradients()), gradients))
    return prepared | {BACKWARD: unequal(found, expected, BACKWARD, dtype) or runs.gradients}


def unequal(found: dict[str, NDArray], expected: dict[str, NDArray], kind: str, dtype: str = "float32") -> str | None:
    """Describes the error of the worst array; None if all arrays are equal within the tolerance of `dtype`."""
    worst, reason = 1.0, None
    for name, array in expected.items():
        if found[name].shape != array.shape:
            return f"unequal: {name} has shape {found[name].shape}, not {array.shape}"
        used = float(np.max(tolerances_used(found[name], array, dtype, KINDS[kind])))
        if np.isnan(used):
            return f"unequal: {name} contains NaN"
        if used > worst:
            worst, reason = used, f"unequal: {name} is {used:.3g} times the tolerance away"
    return reason


def rest() -> None:
    """Waits until no thread of this process uses a processor, at most 0.2 s.

    The threads of ONNX Runtime spin for 35 ms after a call, those of torch for 5 ms, and would slow down the next call.
    """
    for _ in range(40):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.001:
            return


def interleave(thunks: dict[Any, Thunk], repeats: int, seconds: float = 0.0) -> dict[Any, tuple[float, ...]]:
    """Returns the times of each thunk in ms: at least `repeats`, and more up to `seconds` in total, at most 200.

    In every round the thunks run in random order, so that noise affects all of them equally. If a thunk needs fewer
    turns than there are rounds, its turns are spread evenly. A turn starts when the threads of the previous one are
    idle. It is one untimed call, which brings the data back into the caches, and one timed call.
    """

    def turn(thunk: Thunk) -> float:
        rest()
        thunk()
        start = time.perf_counter()
        thunk()
        return time.perf_counter() - start

    wanted = {n: min(ceil(seconds / max(turn(t), 1e-6)), MOST_ROUNDS) if seconds else 0 for n, t in thunks.items()}
    turns = {name: max(count, repeats) for name, count in wanted.items()}
    rounds = max(turns.values(), default=0)
    times: dict[Any, list[float]] = {name: [] for name in thunks}
    order, rng = list(thunks), random.Random(0)
    for i in range(rounds):
        rng.shuffle(order)
        for name in order:
            if (i + 1) * turns[name] // rounds > i * turns[name] // rounds:
                times[name].append(round(turn(thunks[name]) * 1e3, 4))
    return {name: tuple(values) for name, values in times.items()}
