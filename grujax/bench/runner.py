"""Checks every peer against the oracle, times the equal ones in turns, and reports."""

import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from grujax.bench.cases import CASES, Arrays, Case, make_arrays
from grujax.bench.oracle import Gradients, oracle
from grujax.bench.peers import PEERS, Peer, Thunk, Unavailable
from grujax.bench.products import products
from grujax.errors import require
from grujax.saving import replacing
from grujax.testing.tolerances import Kind, tolerances_used

if TYPE_CHECKING:
    from rich.table import Table

FORWARD, BACKWARD = PASSES = ("forward", "forward + backward")
KINDS: dict[str, Kind] = {FORWARD: "forward", BACKWARD: "gradient"}
LIMIT = "products alone"
"""Stands among the peers of a report: the matrix products of the case alone, in the fastest library at hand."""
MOST_ROUNDS = 200
TABLE_WIDTH = 200
"""Columns that a table of all peers needs: narrower, its numbers would be cut."""


@dataclass(frozen=True)
class Options:
    """grujax beside its peers, in one run: on the CPU, or on the GPU that JAX finds.

    Attributes:
      shapes: which cases.
      peers: which GRUs.
      repeats: how many times each call is timed, at least.
      seconds: calls are timed until they took this long in all (at most 200 times).
      save: write the report as JSON under benchmarks/results/.
    """

    shapes: tuple[str, ...] = tuple(CASES)
    peers: tuple[str, ...] = tuple(PEERS)
    repeats: int = 7
    seconds: float = 1.0
    save: bool = False


@dataclass(frozen=True)
class Result:
    """One peer on one case in one pass. `status` is "measured", or why there are no times."""

    case: str
    peer: str
    kind: str
    status: str
    median_ms: float | None = None
    times_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Report:
    """All results and where they come from. `cases`: the fields of each `Case` by its name."""

    date: str
    commit: str
    dirty: bool
    device: dict[str, Any]
    versions: dict[str, str]
    threads: int
    cases: dict[str, dict[str, Any]]
    results: tuple[Result, ...]

    @property
    def failed(self) -> bool:
        """grujax itself was found unequal to the oracle."""
        return any(r.peer.startswith("grujax") and r.status.startswith("unequal") for r in self.results)

    def median(self, case: str, peer: str, kind: str) -> float | None:
        return next((r.median_ms for r in self.results if (r.case, r.peer, r.kind) == (case, peer, kind)), None)


def run(options: Options, say: Callable[[str], object] = lambda line: None) -> Report:
    """Measures all that `options` names."""
    for argument, names, known in (("shapes", options.shapes, CASES), ("peers", options.peers, PEERS)):
        unknown = [name for name in names if name not in known]
        require(not unknown, argument, f"some of {list(known)}", unknown)
    require(options.repeats > 0, "repeats", "a positive integer", options.repeats)
    require(options.seconds >= 0, "seconds", "a number, not negative", options.seconds)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = _device()
    commit, dirty = _git("rev-parse", "HEAD") or "unknown", bool(_git("status", "--porcelain"))
    peers = {name: PEERS[name] for name in options.peers}
    results: list[Result] = []
    # torch multiplies in full float32 too (`torch_device`); on the CPU there is nothing to choose
    with jax.default_matmul_precision("highest" if jax.default_backend() == "gpu" else None):
        for name in options.shapes:
            say(str(CASES[name]))
            results += measure(CASES[name], peers, options.repeats, threads, options.seconds)
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"),
        commit,
        dirty,
        device,
        {"python": platform.python_version()} | _versions(peers.values()),
        threads,
        {name: asdict(CASES[name]) for name in options.shapes},
        tuple(results),
    )


def measure(case: Case, peers: dict[str, Peer], repeats: int, threads: int, seconds: float = 0.0) -> list[Result]:
    """Every peer on one case, and the limit. One that is not there or not equal gets its reason in place of times."""
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
        of_limit = [times[LIMIT, library] for library in limits]
        results.append(_result(case, LIMIT, kind, min(of_limit, key=statistics.median, default="no library")))
    return results


def _result(case: Case, peer: str, kind: str, times: tuple[float, ...] | str) -> Result:
    if isinstance(times, str):
        return Result(case.name, peer, kind, times)
    return Result(case.name, peer, kind, "measured", round(statistics.median(times), 4), times)


def prepare(
    peer: Peer, a: Arrays, threads: int, hs: NDArray, gradients: Gradients, traits: tuple[str, ...] = ()
) -> dict[str, Thunk | str]:
    """For each pass the call to time, run once and found equal to the oracle, or the reason why there is none."""
    if reason := peer.refuses(traits) or peer.missing():
        return dict.fromkeys(PASSES, reason)
    try:
        runs = peer.build(a, threads)
    except Unavailable as error:
        return dict.fromkeys(PASSES, str(error))
    dtype, valid = a.x.dtype.name, a.valid[..., None]
    found = runs.read_hs(runs.forward())
    if found.shape == hs.shape:
        found = np.where(valid, found, found.dtype.type(0))  # what stands in the padding is nobody's result
    reason = unequal({"hs": found}, {"hs": hs}, FORWARD, dtype)
    prepared: dict[str, Thunk | str] = {FORWARD: reason or runs.forward}
    if runs.gradients is None or runs.read_gradients is None:
        return prepared | {BACKWARD: "forward only"}
    got, right = (g.named(a.num_directions) for g in (runs.read_gradients(runs.gradients()), gradients))
    return prepared | {BACKWARD: unequal(got, right, BACKWARD, dtype) or runs.gradients}


def unequal(found: dict[str, NDArray], expected: dict[str, NDArray], kind: str, dtype: str = "float32") -> str | None:
    """What is wrong with the worst array, in words; None where all are equal within the tolerance of `dtype`."""
    worst, reason = 1.0, None
    for name, right in expected.items():
        if found[name].shape != right.shape:
            return f"unequal: {name} has shape {found[name].shape}, not {right.shape}"
        used = float(np.max(tolerances_used(found[name], right, dtype, KINDS[kind])))
        if np.isnan(used):
            return f"unequal: {name} is not a number somewhere"
        if used > worst:
            worst, reason = used, f"unequal: {name} is {used:.3g} times the tolerance away"
    return reason


def interleave(thunks: dict[Any, Thunk], repeats: int, seconds: float = 0.0) -> dict[Any, tuple[float, ...]]:
    """Times in ms: of each thunk at least `repeats`, and as many more as fit into `seconds`, 200 at most.

    In every round the thunks have their turns in random order, so that noise falls on all alike; one that needs fewer
    turns than there are rounds has them evenly spread. A turn is one call that is not timed and one that is: the first
    brings the data back into the caches and outlasts the threads of the one before, which spin for a while.
    """

    def turn(thunk: Thunk) -> float:
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
    return {name: tuple(of_one) for name, of_one in times.items()}


def ratios(report: Report, kind: str, peer: str, to: str = "grujax") -> list[float | None]:
    """The peer's median over that of `to`, for every case: above 1 the peer is slower."""
    pairs = [(report.median(case, peer, kind), report.median(case, to, kind)) for case in report.cases]
    return [a / b if a and b else None for a, b in pairs]


def is_rival(peer: str) -> bool:
    """Another library's GRU: neither one of grujax's own nor what is no GRU."""
    return peer != LIMIT and not peer.startswith("grujax")


def to_fastest(report: Report, kind: str, of: str = "grujax") -> list[float | None]:
    """The median of `of` over that of the fastest other library, for every case: below 1 it is the fastest."""
    others = {r.peer for r in report.results if is_rival(r.peer)}
    found = []
    for case in report.cases:
        times = [t for peer in others if (t := report.median(case, peer, kind))]
        mine = report.median(case, of, kind)
        found.append(mine / min(times) if mine and times else None)
    return found


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None where none is."""
    there = [value for value in values if value is not None]
    return statistics.geometric_mean(there) if there else None


def table(report: Report, kind: str) -> "Table":
    """Cases by peers: the median in ms and its ratio to grujax, the reason where there is none."""
    from rich.table import Table

    def times(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}x"

    def share(part: float | None) -> str:
        return "" if part is None else f"{part:.0%}"

    peers = list(dict.fromkeys(r.peer for r in report.results))
    of_peers = {peer: ratios(report, kind, peer) for peer in peers}
    fastest, limit = to_fastest(report, kind), ratios(report, kind, LIMIT)
    made = Table(title=f"{kind}: median ms, ratio to grujax", row_styles=["", "dim"])
    made.add_column("case")
    for name in (*peers, "µs a step", "grujax / fastest", "share of the limit"):
        made.add_column(name.replace(" ", "\n"), justify="right")
    for i, (case, fields) in enumerate(report.cases.items()):
        cells = []
        for peer in peers:
            median = report.median(case, peer, kind)
            cells.append(
                f"{_digits(median)}\n{times(of_peers[peer][i])}" if median else _status(report, case, peer, kind)
            )
        mine = report.median(case, "grujax", kind)
        step = _digits(mine * 1e3 / fields["T"]) if mine else ""
        made.add_row(str(Case(**fields)).replace(" ", "\n", 1), *cells, step, times(fastest[i]), share(limit[i]))
    made.add_section()
    means = [times(geometric_mean(of_peer)) for of_peer in of_peers.values()]
    made.add_row("geometric mean", *means, "", times(geometric_mean(fastest)), share(geometric_mean(limit)))
    return made


def _status(report: Report, case: str, peer: str, kind: str) -> str:
    return next((r.status for r in report.results if (r.case, r.peer, r.kind) == (case, peer, kind)), "")


def _digits(value: float) -> str:
    """Three digits or more.

    >>> _digits(1234.5), _digits(40.51), _digits(0.0321)
    ('1234', '40.5', '0.032')
    """
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def save(report: Report, folder: Path) -> Path:
    """Writes the report as JSON, a line for each field and result, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = "".join(c for c in report.date[:19] if c.isalnum())
    path = folder / f"{moment}-{report.commit[:7]}{'-dirty' if report.dirty else ''}.json"
    fields = {name: json.dumps(value) for name, value in asdict(report).items()}
    fields["results"] = "[\n" + ",\n".join(json.dumps(asdict(r)) for r in report.results) + "\n]"
    with replacing(path) as temporary:
        temporary.write_text(
            "{\n" + ",\n".join(f'"{name}": {value}' for name, value in fields.items()) + "\n}\n", encoding="utf-8"
        )
    return path


def load(path: Path) -> Report:
    """What `save` wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["results"] = tuple(Result(**r | {"times_ms": tuple(r["times_ms"])}) for r in fields["results"])
    return Report(**fields)


def _versions(peers: Iterable[Peer]) -> dict[str, str]:
    modules = {name: None for peer in peers for name in peer.modules}
    found = {}
    for name in ("grujax", "jax", "jaxlib", "numpy", *modules):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            found[name] = "not installed"
    return found


def _device() -> dict[str, Any]:
    """The machine, and what else moves the times: the load before the run (the run's own comes after) and settings."""
    settings = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "XLA_FLAGS")
    accelerators = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return {
        "cpu": _cpu_model(),
        "accelerator": accelerators[0] if accelerators else None,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {name: os.environ[name] for name in settings if name in os.environ},
    }


def _cpu_model() -> str:
    """The processor's name; what Python knows of it where /proc/cpuinfo is not there."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str:
    """git's answer about the tree this file stands in; empty where it is in none."""
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
