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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from grujax import equations
from grujax.bench.cases import CASES, TOLERANCES, Arrays, Case, Kind, make_arrays
from grujax.bench.peers import PEERS, Gradients, Peer, Thunk
from grujax.errors import require

if TYPE_CHECKING:
    from rich.table import Table

FORWARD, BACKWARD = PASSES = ("forward", "forward + backward")
KINDS: dict[str, Kind] = {FORWARD: "forward", BACKWARD: "gradient"}


@dataclass(frozen=True)
class Options:
    """grujax beside its peers on the CPU, in one run.

    Attributes:
      shapes: which cases.
      peers: which GRUs.
      repeats: how many rounds; in each one every peer is timed once.
      save: write the report as JSON under benchmarks/results/.
    """

    shapes: tuple[str, ...] = tuple(CASES)
    peers: tuple[str, ...] = tuple(PEERS)
    repeats: int = 15
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
    """All results and where they come from."""

    date: str
    commit: str
    dirty: bool
    device: dict[str, Any]
    versions: dict[str, str]
    threads: int
    cases: dict[str, tuple[int, int, int, int]]
    results: tuple[Result, ...]

    def median(self, case: str, peer: str, kind: str) -> float | None:
        return next((r.median_ms for r in self.results if (r.case, r.peer, r.kind) == (case, peer, kind)), None)


def run(options: Options, say: Callable[[str], object] = lambda line: None) -> Report:
    """Measures all that `options` names."""
    for argument, names, known in (("shapes", options.shapes, CASES), ("peers", options.peers, PEERS)):
        unknown = [name for name in names if name not in known]
        require(not unknown, argument, f"some of {list(known)}", unknown)
    require(options.repeats > 0, "repeats", "a positive integer", options.repeats)
    backend = jax.default_backend()
    require(backend == "cpu", "JAX's backend", "cpu", backend, "Set JAX_PLATFORMS=cpu: the peers run there.")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = _device()
    commit, dirty = _git("rev-parse", "HEAD") or "unknown", bool(_git("status", "--porcelain"))
    peers = {name: PEERS[name] for name in options.peers}
    results: list[Result] = []
    for name in options.shapes:
        say(f"{name} {CASES[name].shape}")
        results += measure(CASES[name], peers, options.repeats, threads)
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"),
        commit,
        dirty,
        device,
        {"python": platform.python_version()} | _versions(peers.values()),
        threads,
        {name: CASES[name].shape for name in options.shapes},
        tuple(results),
    )


def measure(case: Case, peers: dict[str, Peer], repeats: int, threads: int) -> list[Result]:
    """Every peer on one case. One that is not there or not equal gets its reason in place of times."""
    arrays = make_arrays(case)
    expected = {mode: oracle(arrays, mode) for mode in {peer.reset_after for peer in peers.values()}}
    prepared = {name: prepare(peer, arrays, threads, *expected[peer.reset_after]) for name, peer in peers.items()}
    results = []
    for kind in PASSES:
        times = interleave({n: t for n, p in prepared.items() if not isinstance(t := p[kind], str)}, repeats)
        for name in peers:
            if name in times:
                median = round(statistics.median(times[name]), 4)
                results.append(Result(case.name, name, kind, "measured", median, times[name]))
            else:
                results.append(Result(case.name, name, kind, str(prepared[name][kind])))
    return results


def prepare(peer: Peer, a: Arrays, threads: int, hs: NDArray, gradients: Gradients) -> dict[str, Thunk | str]:
    """For each pass the call to time, run once and found equal to the oracle, or the reason why there is none."""
    if missing := peer.missing():
        return dict.fromkeys(PASSES, missing)
    runs = peer.build(a, threads)
    found = {"hs": runs.read_hs(runs.forward())}
    prepared: dict[str, Thunk | str] = {FORWARD: unequal(found, {"hs": hs}, FORWARD) or runs.forward}
    if runs.gradients is None or runs.read_gradients is None:
        return prepared | {BACKWARD: "forward only"}
    found = runs.read_gradients(runs.gradients())._asdict()
    return prepared | {BACKWARD: unequal(found, gradients._asdict(), BACKWARD) or runs.gradients}


def oracle(a: Arrays, reset_after: bool) -> tuple[NDArray, Gradients]:
    """hs and the gradients of sum(hs * cotangent) by the NumPy equations, in float64, batch-major."""
    variant = equations.Variant(reset_after=reset_after)
    x, h0, *weights, cotangent = [v.astype(np.float64) for v in a]
    x, cotangent = x.swapaxes(0, 1), cotangent.swapaxes(0, 1)
    hs = equations.sequence(x, h0, *weights, variant=variant).hs
    g = equations.sequence_backward(x, h0, *weights, dhs=cotangent, dh_last=np.zeros_like(h0), variant=variant)
    return hs.swapaxes(0, 1), Gradients(g.x.swapaxes(0, 1), g.h0, g.w_ih, g.w_hh, g.b_ih, g.b_hh)


def unequal(found: dict[str, NDArray], expected: dict[str, NDArray], kind: str) -> str | None:
    """What is wrong with the worst array, in words; None where all are equal within the tolerance."""
    relative, absolute = TOLERANCES["float32", KINDS[kind]]
    for name, right in expected.items():
        if found[name].shape != right.shape:
            return f"unequal: {name} has shape {found[name].shape}, not {right.shape}"
        allowed = relative * np.maximum(np.abs(right), np.sqrt(np.mean(right**2))) + absolute
        used = float(np.max(np.abs(found[name] - right) / allowed))
        if not used <= 1:  # NaN too
            return f"unequal: {name} is {used:.3g} times the tolerance away"
    return None


def interleave(thunks: dict[str, Thunk], repeats: int) -> dict[str, tuple[float, ...]]:
    """Times in ms. In every round each thunk has its turn, in random order, so that noise falls on all alike.

    A turn is one call that is not timed and one that is: the first brings the data back into the caches and outlasts
    the threads of the one before, which spin for a while.
    """
    times: dict[str, list[float]] = {name: [] for name in thunks}
    order, rng = list(thunks), random.Random(0)
    for _ in range(repeats):
        rng.shuffle(order)
        for name in order:
            thunks[name]()
            start = time.perf_counter()
            thunks[name]()
            times[name].append(round((time.perf_counter() - start) * 1e3, 4))
    return {name: tuple(of_one) for name, of_one in times.items()}


def ratios(report: Report, kind: str, peer: str, to: str = "grujax") -> list[float | None]:
    """The peer's median over that of `to`, for every case: above 1 the peer is slower."""
    pairs = [(report.median(case, peer, kind), report.median(case, to, kind)) for case in report.cases]
    return [a / b if a and b else None for a, b in pairs]


def to_fastest(report: Report, kind: str) -> list[float | None]:
    """grujax's median over that of the fastest other library, for every case: below 1 grujax is fastest."""
    others = {r.peer for r in report.results if not r.peer.startswith("grujax")}
    found = []
    for case in report.cases:
        times = [t for peer in others if (t := report.median(case, peer, kind))]
        mine = report.median(case, "grujax", kind)
        found.append(mine / min(times) if mine and times else None)
    return found


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None where none is."""
    there = [value for value in values if value is not None]
    return statistics.geometric_mean(there) if there else None


def table(report: Report, kind: str) -> "Table":
    """Peers by cases: the median in ms and its ratio to grujax, the reason where there is none."""
    from rich.table import Table

    def times(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.2f}x"

    made = Table(title=f"{kind}: median ms, ratio to grujax", row_styles=["", "dim"])
    made.add_column("peer", no_wrap=True)
    for case, shape in report.cases.items():
        made.add_column(f"{case}\n{','.join(map(str, shape))}", justify="right")
    made.add_column("geometric\nmean", justify="right")
    for peer in dict.fromkeys(r.peer for r in report.results):
        ratio = ratios(report, kind, peer)
        cells = []
        for r, of_case in zip((r for r in report.results if (r.peer, r.kind) == (peer, kind)), ratio, strict=True):
            cells.append(r.status if r.median_ms is None else f"{r.median_ms:.1f} {times(of_case)}".strip())
        made.add_row(peer, *cells, times(geometric_mean(ratio)))
    fastest = to_fastest(report, kind)
    made.add_section()
    made.add_row("grujax / fastest", *map(times, fastest), times(geometric_mean(fastest)))
    return made


def save(report: Report, folder: Path) -> Path:
    """Writes the report as JSON, whole or not at all: a file of its name is never half written."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = "".join(c for c in report.date[:19] if c.isalnum())
    path = folder / f"{moment}-{report.commit[:7]}{'-dirty' if report.dirty else ''}.json"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(report), indent=1) + "\n")
    partial.replace(path)
    return path


def load(path: Path) -> Report:
    """What `save` wrote."""
    fields = json.loads(path.read_text())
    fields["cases"] = {case: tuple(shape) for case, shape in fields["cases"].items()}
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
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "environment": {name: os.environ[name] for name in settings if name in os.environ},
    }


def _cpu_model() -> str:
    """The processor's name; what Python knows of it where /proc/cpuinfo is not there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str:
    """git's answer about the tree this file stands in; empty where it is in none."""
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
