"""The GRU on an NVIDIA GPU: ceilings of the machine, values against float64, microseconds a step beside others.

    PYTHONPATH=. python benchmarks/gpu.py --out DIR [--seconds 200] [--only PART] [--shapes NAME] [--dry-run]

DIR/gpu.json holds all that was found so far after every step; the table of times is printed at the end. Every group of
values and every shape runs in a process of its own with a time limit, so that one that hangs or aborts costs no other
its result. `--dry-run` goes through the same lines, tiny, on the CPU.

It needs JAX, Flax and NumPy. With torch there is cuDNN, and with torchrl on the path its Triton kernel:

    pip install --no-deps --target WHEELS torchrl==0.14.1 tensordict==0.14.3 pyvers hoptorch cloudpickle packaging
    PYTHONPATH=.:WHEELS python benchmarks/gpu.py --out DIR

Leave torchrl off the path at first, then name a shape: on an H100 its tuning did not end in 175 seconds.

Shapes come in waves. What a wave needs is compiled side by side: XLA and Triton tune while other processes compute, and
Triton once more when torchrl's turn comes. Nothing else computes while a shape is timed. The values come last, all side
by side, of programs that XLA did not tune: beside them a wave was not compiled in 100 seconds. The floor is what no GRU
can leave out: the products at the measured rate of their dtype, or, where that takes longer, to move the weights and
all that is as large as x or hs once (both passes: each of these again, and its gradient) at the measured bandwidth.
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
"""Which rows of which shapes are compiled at once and then timed, the important ones first."""
COMPILING = 130  # seconds in which a wave begins to compile what it needs; the rest is left out
SIZES = (64, 128, 256, 512)  # H of the values
LIMIT = 60  # seconds of the times of a shape; values have 90
RATIOS = ("/scan", "/cuDNN", "/best", "floors")
FAR = 0.05  # from xla, relative: told with the table
GRACE = 20  # seconds for the programs that are being compiled then

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, required=True, help="the folder of gpu.json")
parser.add_argument("--seconds", type=float, default=200, help="after so many no wave begins; at most 9 minutes in all")
parser.add_argument("--only", choices=("machine", "values", "times"), help="this part alone")
parser.add_argument("--shapes", default="", help="those alone whose name has this in it, such as 64, 512, 256")
parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
options = parser.parse_args()
TINY, START, SEED = options.dry_run, time.time(), time.time_ns() % 2**32
REPEATS = 2 if TINY else 9
if TINY:
    SIZES, LIMIT = (6,), 10 * LIMIT
    WAVES = ((ALL[::2], (of_shape(4, 5, 8),)), (ALL[:1], (of_shape(4, 5, 8, resets=0.3),)))

FOUND: dict[str, dict[str, Any]] = {}
WRITING = Lock()


def keep(part: str, key: str, value: Any) -> None:
    """Into the file at once: a run that is cut off has shown what it saw."""
    with WRITING:
        FOUND.setdefault(part, {})[key] = value
        with replacing(options.out / "gpu.json") as temporary:
            temporary.write_text(json.dumps(FOUND, indent=1), encoding="utf-8")
        print(f"{time.time() - START:6.1f} s  {part}  {key}  {json.dumps(value)[:150]}", flush=True)


class Alone:
    """A part in a process of its own; its results are kept as they come."""

    def __init__(self, label: str, arguments: dict[str, Any], tuned: bool = True) -> None:
        self.label, self.began = label, time.time()
        self.ready = Event()  # all is compiled: it waits for its turn
        flags = ["--xla_gpu_autotune_level=0"] * (not tuned) + ["--xla_backend_optimization_level=0"] * TINY
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": "1",  # several oracles at once
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
        """Lets it go on; it has ended when this returns, after `limit` seconds at the latest."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            code = self.process.wait(max(limit, 0))
            why = f"failed: exit {code}" if code else ""
        except subprocess.TimeoutExpired:
            self.process.kill()
            why = f"the rest: stopped {time.time() - self.began:.0f} s after its start"
        self.reader.join()
        if why:
            self.errors.seek(0)
            keep("left out", self.label, f"{why} {' '.join(self.errors.read().split())[-300:]}".strip())
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
        given = {"part": "times", "rows": rows, "seed": SEED, "until": until, "repeats": REPEATS}
        wave = [Alone(f"times of {case.name}", given | {"case": asdict(case)}) for case in cases]
        while time.time() < until + GRACE and not all(map(settled, wave)):
            time.sleep(0.1)
        for shape in sorted(wave, key=settled):  # first those that would compute while others are timed
            shape.end(LIMIT if settled(shape) else 0)
    if "machine" in parts:
        Alone("machine", {"part": "machine", "tiny": TINY}).end(LIMIT)
    groups = []
    for name, hidden_size in ((n, h) for n in OURS for h in SIZES if "values" in parts):
        given = {"part": "values", "name": name, "hidden_size": hidden_size, "seed": SEED, "tiny": TINY}
        groups.append(Alone(f"values of {name}, H {hidden_size}", given, tuned=False))
    for group in groups:
        group.end(group.began + 1.5 * LIMIT - time.time())
    keep("machine", "seconds", time.time() - START)
    table()


def settled(shape: Alone) -> bool:
    """It waits for its turn, or has ended."""
    return shape.ready.is_set() or shape.process.poll() is not None


# ---- The table.
def floor(case: Case, row: str, kind: str) -> float | None:
    """Microseconds a step that the products or the arrays take at the rates of this machine."""
    rate, bandwidth = (FOUND["machine"].get(key) for key in (f"product {row}, TFLOP/s", "copy, TB/s"))
    if not isinstance(rate, float) or not isinstance(bandwidth, float):
        return None
    both = kind == BACKWARD
    passes, size = (
        1 + 2 * both,
        jnp.dtype(ROWS[row][0]).itemsize,
    )  # backward two products for one, and four arrays for two
    products = passes * 6 * case.B * case.H * (case.I + case.H)
    weights = (1 + both) * 3 * case.H * (case.I + case.H) / case.T
    return max(products / rate, size * (passes * case.B * (case.I + case.H) + weights) / bandwidth) / 1e6


def summary(name: str, hidden_size: int, row: str) -> str:
    """The worst of all kinds of values of an implementation, or why there are none."""
    keys = [f"{name} | H {hidden_size} | {kind} | {row}" for kind in KINDS_OF_VALUES]
    results = [FOUND.get("values", {}).get(key, "nothing found") for key in keys]
    measured = [v for v in results if not isinstance(v, str)]
    words = sorted({v[:150] for v in results if isinstance(v, str)})
    if measured:
        # np.max: what is not a number stays one
        worst = {part: np.max([x for v in measured for x in v[part].values()]) for part in ("used", "relative error")}
        hs, same = np.max([v["relative error"]["hs"] for v in measured]), all(v["identical"] for v in measured)
        text = f"{len(measured)} kinds: relative error of hs {hs:.1e}, of any array {worst['relative error']:.1e}"
        text += f"; {worst['used']:.0%} of what {measured[0]['row']} allows" + ("" if same else "; TWO RUNS DIFFER")
        words = [text, *words]
    return f"  {name:9}H {hidden_size:<4}{row:16}{'; '.join(words)}"


def ratios(case: Case, kind: str, taken: dict[str, float], lowest: float | None) -> list[float | None]:
    """The scan, cuDNN in this row, and cuDNN at its best in any row, over the first of ours; ours over the floor."""
    ours = next((taken[name] for name in OURS if name in taken), None)
    rows = [microseconds(f"{case.name} | {row} | {kind}") for row in ROWS]
    cudnn = [t for name in ("cuDNN", "cuDNN packed") for row in rows if (t := row.get(name))]
    others = (taken.get("lax.scan"), taken.get("cuDNN"), min(cudnn, default=None))
    return [t / ours if t and ours else None for t in others] + [ours / lowest if ours and lowest else None]


def microseconds(key: str) -> dict[str, float]:
    found = FOUND.get("times", {}).get(key, {}).get("us a step", {})
    return {name: t for name, t in found.items() if isinstance(t, float)}


def cells(numbers: Iterable[float | None], width: int) -> str:
    return "".join(f"{'-':>{width}}" if v is None else f"{v:{width}.2f}" for v in numbers)


def table() -> None:
    """What was found in words, at the end the times: a run's output may be cut at its beginning."""
    for part in ("machine", "left out"):
        print(f"\n{part}", *(f"  {key}: {str(value)[:200]}" for key, value in FOUND.get(part, {}).items()), sep="\n")
    print("\nvalues against float64, the worst of all kinds")
    print(*(summary(name, hidden_size, row) for name in OURS for hidden_size in SIZES for row in ROWS), sep="\n")
    lines, why, away = [], {}, []
    for case, row, kind in ((c, r, k) for rows, shapes in WAVES for c in shapes for r in rows for k in PASSES):
        key = f"{case.name} | {row} | {kind}"
        taken, lowest = microseconds(key), floor(case, row, kind)
        if key not in FOUND.get("times", {}):
            continue
        for name, reason in FOUND["times"][key]["us a step"].items():
            if isinstance(reason, str):
                why.setdefault(f"{name}: {reason[:200]}", []).append(case.name)
        away += [f"  {name} {d:.0%} ({key})" for name, d in FOUND["times"][key]["from xla"].items() if not d <= FAR]
        numbers = cells([*map(taken.get, CONTENDERS), lowest], 13) + cells(ratios(case, kind, taken, lowest), 10)
        lines.append(f"{case.name:24}{row:16}{'both' if kind == BACKWARD else kind:8}{numbers}")
    print("\nwithout a time", *(f"  {x} ({'; '.join(dict.fromkeys(cs))})" for x, cs in why.items()), sep="\n")
    print(f"\nfurther than {FAR:.0%} from xla: the state after the last step, or the gradient of w_hh", *away, sep="\n")
    print(f"\nmicroseconds a step; then, of the first of {', '.join(OURS)} that ran: how many times as fast as")
    print("lax.scan, cuDNN, and cuDNN in its fastest dtype, packed or not; and how many times the floor it takes")
    head = "".join(f"{name:>13}" for name in (*CONTENDERS, "floor")) + "".join(f"{n:>10}" for n in RATIOS)
    print(f"{'B, T, H':24}{'products':16}{'pass':8}{head}", *lines, sep="\n")


if __name__ == "__main__":
    main()
