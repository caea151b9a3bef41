"""Measures the GRU on an NVIDIA GPU: the machine's peak rates, values against float64, and microseconds per step.

    PYTHONPATH=. python benchmarks/gpu.py --out DIR [--seconds 200] [--only PART] [--shapes NAME] [--dry-run]

After every step DIR/gpu.json holds all results so far. The table of times is printed at the end. Every group of values
and every shape runs in its own process with a time limit, so that one that hangs or aborts does not affect the others.
`--dry-run` runs the same code with tiny shapes on the CPU.

It needs JAX, Flax and NumPy. With torch it also measures cuDNN, and with torchrl on the path its Triton kernel:

    pip install --no-deps --target WHEELS torchrl==0.14.1 tensordict==0.14.3 pyvers hoptorch cloudpickle packaging
    PYTHONPATH=.:WHEELS python benchmarks/gpu.py --out DIR

Leave torchrl off the path at first, then name a shape: on an H100 its tuning did not finish within 175 seconds.

Shapes run in waves. The programs of a wave are compiled in parallel: XLA and Triton tune while other processes compute,
and Triton tunes again when torchrl's turn comes. Nothing else computes while a shape is timed. The values come last, in
parallel, from programs that XLA did not tune: in parallel with them, a wave was not compiled within 100 seconds. The
floor is the least time of any GRU: the products at the measured rate of their dtype or, if that takes longer, the
transfer of the weights and all arrays as large as x or hs once at the measured bandwidth (both passes: each of these
again, and its gradient).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import jax.numpy as jnp
import numpy as np
from gpu_parts import KINDS_OF_VALUES, ROWS
from gpu_peers import CONTENDERS, OURS

from grujax.bench.cases import Case
from grujax.bench.report import BACKWARD, PASSES
from grujax.saving.atomic import replacing


def of_shape(B: int, T: int, H: int, resets: float = 0.0) -> Case:
    return Case(f"{B}, {T}, {H}" + (f", resets {resets:.0%}" if resets else ""), B, T, H, H, resets=resets)


Waves = tuple[tuple[list[str], tuple[Case, ...]], ...]
ALL, TWO, EXACT = list(ROWS), list(ROWS)[:2], list(ROWS)[2:]
WAVES: Waves = (
    (TWO, (of_shape(64, 512, 128), of_shape(64, 512, 256), of_shape(1, 1024, 256))),
    (TWO, (of_shape(1024, 128, 128), of_shape(64, 512, 512), of_shape(128, 128, 256, resets=0.03))),
    (TWO, (of_shape(4096, 128, 256), of_shape(16, 1024, 768), of_shape(256, 512, 1024))),
    (EXACT, (of_shape(64, 512, 128), of_shape(1024, 128, 128))),
)
"""The rows and shapes that are compiled in parallel and then timed, the important ones first."""
COMPILING = 130  # seconds after which a wave starts no more compilations; the remaining programs are left out
SIZES = (64, 128, 256, 512)  # H for the values
LIMIT = 60  # seconds for the times of a shape; values have 90
RATIOS = ("/scan", "/cuDNN", "/best", "floors")
FAR = 0.05  # larger relative differences from xla are printed with the table
GRACE = 20  # seconds for compilations that have already started

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, required=True, help="the folder of gpu.json")
parser.add_argument(
    "--seconds", type=float, default=200, help="no wave starts after this time; at most 9 minutes in total"
)
parser.add_argument("--only", choices=("machine", "values", "times"), help="run only this part")
parser.add_argument("--shapes", default="", help="run only shapes whose name contains this, such as 64, 512, 256")
parser.add_argument("--dry-run", action="store_true", help="run tiny shapes on the CPU")
options = parser.parse_args()
TINY, START, SEED = options.dry_run, time.time(), time.time_ns() % 2**32
REPEATS = 2 if TINY else 9
if TINY:
    SIZES, LIMIT = (6,), 10 * LIMIT
    WAVES = ((ALL[::2], (of_shape(4, 5, 8),)), (ALL[:1], (of_shape(4, 5, 8, resets=0.3),)))

FOUND: dict[str, dict[str, Any]] = {}
WRITING = Lock()


def keep(part: str, key: str, value: Any) -> None:
    """Writes a result to the file and prints it at once, so that an aborted run keeps its results."""
    with WRITING:
        FOUND.setdefault(part, {})[key] = value
        with replacing(options.out / "gpu.json") as temporary:
            temporary.write_text(json.dumps(FOUND, indent=1), encoding="utf-8")
        print(f"{time.time() - START:6.1f} s  {part}  {key}  {json.dumps(value)[:150]}", flush=True)


class Alone:
    """A part that runs in its own process. Its results are kept as they arrive."""

    def __init__(self, label: str, arguments: dict[str, Any], tuned: bool = True) -> None:
        self.label, self.start = label, time.time()
        self.ready = Event()  # set when everything is compiled and it waits for its turn
        flags = ["--xla_gpu_autotune_level=0"] * (not tuned) + ["--xla_backend_optimization_level=0"] * TINY
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": "1",  # several oracles run in parallel
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the processes and torch share the memory
            "XLA_FLAGS": " ".join([os.environ.get("XLA_FLAGS", ""), *flags]),
        }
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115, closed with the process
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            errors="replace",
            env=environment | ({"JAX_PLATFORMS": "cpu"} if TINY else {}),
        )
        self.reader = Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                keep(*json.loads(line[7:]))
            elif line == "READY\n":
                self.ready.set()

    def end(self, limit: float) -> None:
        """Starts its turn and waits for its end; kills it after `limit` seconds."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(max(limit, 0))
            reason = f"failed: exit {code}" if code else ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            reason = f"the rest: stopped {time.time() - self.start:.0f} s after its start"
        self.reader.join()
        if reason:
            self.errors.seek(0)
            keep("left out", self.label, f"{reason} {' '.join(self.errors.read().split())[-300:]}".strip())
        self.errors.close()


def main() -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    keep("machine", "seed", SEED)
    parts = (options.only,) if options.only else ("times", "machine", "values")
    for rows, shapes in WAVES if "times" in parts else ():
        cases = [case for case in shapes if options.shapes in case.name]
        if time.time() > START + options.seconds:
            keep("left out", "; ".join(case.name for case in cases), "no time left")
            continue
        until = time.time() + COMPILING
        arguments = {"part": "times", "rows": rows, "seed": SEED, "until": until, "repeats": REPEATS}
        wave = [Alone(f"times of {case.name}", arguments | {"case": asdict(case)}) for case in cases]
        while time.time() < until + GRACE and not all(map(settled, wave)):
            time.sleep(0.1)
        for shape in sorted(wave, key=settled):  # first end those that would compute while others are timed
            shape.end(LIMIT if settled(shape) else 0)
    if "machine" in parts:
        Alone("machine", {"part": "machine", "tiny": TINY}).end(LIMIT)
    groups = []
    for name, hidden_size in ((n, h) for n in OURS for h in SIZES if "values" in parts):
        arguments = {"part": "values", "name": name, "hidden_size": hidden_size, "seed": SEED, "tiny": TINY}
        groups.append(Alone(f"values of {name}, H {hidden_size}", arguments, tuned=False))
    for group in groups:
        group.end(group.start + 1.5 * LIMIT - time.time())
    keep("machine", "seconds", time.time() - START)
    table()


def settled(shape: Alone) -> bool:
    """Returns whether the process waits for its turn or has ended."""
    return shape.ready.is_set() or shape.process.poll() is not None


# ---- The table.
def floor(case: Case, row: str, kind: str) -> float | None:
    """Returns the microseconds per step that the products or the arrays take at the rates of this machine."""
    rate, bandwidth = (FOUND["machine"].get(key) for key in (f"product {row}, TFLOP/s", "copy, TB/s"))
    if not isinstance(rate, float) or not isinstance(bandwidth, float):
        return None
    both = kind == BACKWARD
    passes, size = (
        1 + 2 * both,
        jnp.dtype(ROWS[row][0]).itemsize,
    )  # backward: two products for each, and four arrays for each two
    products = passes * 6 * case.B * case.H * (case.I + case.H)
    weights = (1 + both) * 3 * case.H * (case.I + case.H) / case.T
    return max(products / rate, size * (passes * case.B * (case.I + case.H) + weights) / bandwidth) / 1e6


def summary(name: str, hidden_size: int, row: str) -> str:
    """Describes the worst of all kinds of values of an implementation, or why there are none."""
    keys = [f"{name} | H {hidden_size} | {kind} | {row}" for kind in KINDS_OF_VALUES]
    results = [FOUND.get("values", {}).get(key, "nothing found") for key in keys]
    measured = [v for v in results if not isinstance(v, str)]
    words = sorted({v[:150] for v in results if isinstance(v, str)})
    if measured:
        # np.max keeps NaN
        worst = {part: np.max([x for v in measured for x in v[part].values()]) for part in ("used", "relative error")}
        hs, same = np.max([v["relative error"]["hs"] for v in measured]), all(v["identical"] for v in measured)
        text = f"{len(measured)} kinds: relative error of hs {hs:.1e}, of any array {worst['relative error']:.1e}"
        text += f"; {worst['used']:.0%} of the tolerance of {measured[0]['row']}" + (
            "" if same else "; TWO RUNS DIFFER"
        )
        words = [text, *words]
    return f"  {name:9}H {hidden_size:<4}{row:16}{'; '.join(words)}"


def ratios(case: Case, kind: str, taken: dict[str, float], lowest: float | None) -> list[float | None]:
    """Returns the times of lax.scan, cuDNN in this row and the fastest cuDNN over ours, and ours over the floor."""
    ours = next((taken[name] for name in OURS if name in taken), None)
    rows = [microseconds(f"{case.name} | {row} | {kind}") for row in ROWS]
    cudnn = [t for name in ("cuDNN", "cuDNN packed") for row in rows if (t := row.get(name))]
    others = (taken.get("lax.scan"), taken.get("cuDNN"), min(cudnn, default=None))
    return [t / ours if t and ours else None for t in others] + [ours / lowest if ours and lowest else None]


def microseconds(key: str) -> dict[str, float]:
    times = FOUND.get("times", {}).get(key, {}).get("us a step", {})
    return {name: t for name, t in times.items() if isinstance(t, float)}


def cells(numbers: Iterable[float | None], width: int) -> str:
    return "".join(f"{'-':>{width}}" if v is None else f"{v:{width}.2f}" for v in numbers)


def table() -> None:
    """Prints the results, the times last, because the beginning of a run's output may be cut off."""
    for part in ("machine", "left out"):
        print(f"\n{part}", *(f"  {key}: {str(value)[:200]}" for key, value in FOUND.get(part, {}).items()), sep="\n")
    print("\nvalues compared with float64, the worst of all kinds")
    print(*(summary(name, hidden_size, row) for name in OURS for hidden_size in SIZES for row in ROWS), sep="\n")
    lines, reasons, away = [], {}, []
    for case, row, kind in ((c, r, k) for rows, shapes in WAVES for c in shapes for r in rows for k in PASSES):
        key = f"{case.name} | {row} | {kind}"
        taken, lowest = microseconds(key), floor(case, row, kind)
        if key not in FOUND.get("times", {}):
            continue
        for name, reason in FOUND["times"][key]["us a step"].items():
            if isinstance(reason, str):
                reasons.setdefault(f"{name}: {reason[:200]}", []).append(case.name)
        away += [f"  {name} {d:.0%} ({key})" for name, d in FOUND["times"][key]["from xla"].items() if not d <= FAR]
        numbers = cells([*map(taken.get, CONTENDERS), lowest], 13) + cells(ratios(case, kind, taken, lowest), 10)
        lines.append(f"{case.name:24}{row:16}{'both' if kind == BACKWARD else kind:8}{numbers}")
    print("\nwithout a time", *(f"  {x} ({'; '.join(dict.fromkeys(cs))})" for x, cs in reasons.items()), sep="\n")
    print(f"\nmore than {FAR:.0%} from xla: the state after the last step, or the gradient of w_hh", *away, sep="\n")
    print(f"\nmicroseconds per step; then for the first of {', '.join(OURS)} that ran: how many times as fast it is as")
    print("lax.scan, cuDNN, and cuDNN in its fastest dtype, packed or not; and its time as a multiple of the floor")
    head = "".join(f"{name:>13}" for name in (*CONTENDERS, "floor")) + "".join(f"{n:>10}" for n in RATIOS)
    print(f"{'B, T, H':24}{'products':16}{'pass':8}{head}", *lines, sep="\n")


if __name__ == "__main__":
    main()
