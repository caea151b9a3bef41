"""The kernel for Hopper GPUs, compiled for an H100 without one: registers, shared memory, and whole programs."""

import os
import re
import shutil
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from grujax.kernels import run
from grujax.kernels.resident import backward, exact, forward
from grujax.kernels.resident.plan import BACKWARD, FORWARD, SAVING, SHARED, UNITS, plan, refuses, shared_bytes
from grujax.types import Control, GRUWeights, Recurrence

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # no package: its programs import each other by name
from targets import compiled_for

PATH = f"{os.environ.get('MOSAIC_GPU_CUDA_ROOT', '')}/bin:{os.environ['PATH']}"  # where JAX found the CUDA toolkit
MISSING = {
    "jax 0.11.2, the first that reports a kernel's shared memory": jax.__version_info__ < (0, 11, 2),
    "jax-cuda13-plugin, which compiles for GPUs": not any(find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)),
    "ptxas, which nvidia-cuda-nvcc has": shutil.which("ptxas", path=PATH) is None,
}
compiles = pytest.mark.skipif(
    any(MISSING.values()) and os.environ.get("GRUJAX_HOPPER") != "require",
    reason=f"missing: {'; '.join(what for what, missing in MISSING.items() if missing)}",
)
# A cached program for an absent GPU cannot be read back: JAX warns and compiles again.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")


@pytest.fixture
def reported(monkeypatch, capfd):
    """`reported(f, *shapes)` returns the text of the compiled program, and what Mosaic and ptxas report."""
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_RESOURCES", "1")

    def compiled(f, *shapes):
        capfd.readouterr()
        text = compiled_for("H100", f, *shapes).as_text()
        return text, capfd.readouterr().out

    with jax.enable_x64(False):  # as for users
        yield compiled


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


# Every kind of plan


class Asked(NamedTuple):
    """A call of which all loops are compiled."""

    dtype: str
    hidden_size: int
    n_rows: int
    directions: int = 2
    control: bool = True  # flags, and a mask of the state

    def plan(self, sides):
        """The properties that make a kind of plan: (dtype of the products, hidden units, loop, plan)."""
        found = plan((False, True)[: self.directions], False, self.n_rows, *self[1::-1], "default", SIDES[sides])
        return self.dtype, self.hidden_size, sides, found


SIDES = {"forward": FORWARD, "saving": SAVING, "backward": BACKWARD}
SIZES = {
    ("float32", 64): (1, 150, 540, 1200),
    ("float32", 128): (1, 150, 250, 540),
    ("float32", 192): (1, 150, 320),
    ("float32", 256): (1,),
    ("bfloat16", 64): (1, 90, 540, 1200),
    ("bfloat16", 128): (1, 90, 540, 1200),
    ("bfloat16", 192): (1, 150, 320),
    ("bfloat16", 256): (1, 150, 250),
    ("bfloat16", 320): (1, 90, 190),
    ("bfloat16", 384): (1, 66, 150),
    ("bfloat16", 448): (1, 66),
    ("bfloat16", 512): (1, 66),
}
"""Numbers of rows that lead to each kind of plan, by dtype and hidden units."""
PLAIN = {
    ("float32", 64): 540,
    ("float32", 128): 1,
    ("float32", 192): 1,
    ("float32", 256): 1,
    ("bfloat16", 64): 4096,
    ("bfloat16", 128): 200,
    ("bfloat16", 256): 1,
    ("bfloat16", 512): 1,
}
"""One number of rows for each design, with one direction and without flags."""
CALLS = [Asked(*of, n_rows) for of, several in SIZES.items() for n_rows in several]
CALLS += [Asked(*of, n_rows, directions=1, control=False) for of, n_rows in PLAIN.items()]
CASES = {(*call.plan(sides), call.control): None for call in CALLS for sides in SIDES}


def name(case):
    dtype, hidden_size, sides, found, control = case
    return f"{dtype}, {hidden_size} units, {found.rows} rows, {sides}{'' if control else ', plain'}"


def kinds(calls):
    plans = (call.plan(sides) for call in calls for sides in SIDES)
    return {(*of, found._replace(reverse=())) for *of, found in plans}


def test_every_kind_of_plan_is_compiled():
    asked = [
        Asked(dtype, hidden_size, int(1.3**k), directions)
        for dtype in ("float32", "bfloat16")
        for hidden_size in range(UNITS, 2048, UNITS)
        for directions in (1, 2)
        for k in range(45)
        if refuses(hidden_size, dtype, "default") is None
    ]
    assert kinds(asked) == kinds(call for call in CALLS if call.control)


def test_every_design_is_compiled_with_flags_and_without():
    designs = {True: set(), False: set()}
    for *_, sides, found, control in CASES:
        of = (found.rows == 1, found.in_registers > 0, found.blocks > 1, found.stages > 0)
        designs[control].add((sides, *of))
    assert designs[True] == designs[False]


def loop(dtype, hidden_size, sides, found, control, n_steps=64, n_rows=64):
    """A loop of the kernel, and the shapes of its arguments as in its docstring."""
    H, B, D, T = hidden_size, n_rows, len(found.reverse), n_steps
    flags, h_reset, mask = [shape(D, T, B), shape(D, H), shape(D, B, H)] if control else [None] * 3
    if sides == "backward":
        f = (exact if found.rows == 1 else backward).backward
        saved, hs = [shape(T, B, 4 * H)] * D, [shape(B, T, H)] * D
        arrays = (saved, hs, hs, shape(D, B, H), shape(D, H, 3 * H, dtype=dtype), flags, mask)
        return partial(f, plan=found, keep=True), arrays
    f = (exact if found.rows == 1 else forward).forward
    arrays = ([shape(B, T, 3 * H)] * D, shape(D, B, H), shape(D, 3, H, H, dtype=dtype), shape(D, 4, H))
    return partial(f, plan=found, keep=True, saved=sides == "saving"), (*arrays, flags, h_reset, mask)


def shared(dtype, hidden_size, sides, found):
    """The shared memory that a block must request: arrays in whole kilobytes, and eight bytes for each barrier."""
    warpgroups = hidden_size // found.blocks // UNITS
    if found.rows == 1:  # two buffers of the operand, one barrier, and 2 KB in which Mosaic sums
        n_barriers, placeholders = 1, 2
        arrays = 2 * SIDES[sides].parts * hidden_size * 4
    else:
        n_barriers = (found.blocks == 1) + warpgroups * (1 + max(found.stages, 1))
        placeholders = (found.in_registers == 3) + 2 * (found.stages == 0)  # 1 for the weights, 2 for tiles and flags
        arrays = shared_bytes(found, hidden_size, jnp.dtype(dtype).itemsize, SIDES[sides])
    return -(-arrays // 1024) * 1024 + 1024 * placeholders + 8 * n_barriers


@compiles
@pytest.mark.parametrize("case", CASES, ids=name)
def test_no_register_is_spilled_and_the_shared_memory_is_what_the_plan_counts(case, reported):
    f, arrays = loop(*case)
    _, report = reported(f, *arrays)
    assert re.findall(r"\d+ bytes (?:stack frame|spill \w+)", report) == [
        "0 bytes stack frame",
        "0 bytes spill stores",
        "0 bytes spill loads",
    ]
    ((asked),) = re.findall(r"smem_scratch_bytes=(\d+)", report)
    n_barriers = sum(int(n) * int(of) for n, of in re.findall(r"num_barriers=(\d+)[^)]*\): (\d+)", report))
    static = int(*re.findall(r"(\d+) bytes smem", report))
    assert int(asked) + 8 * n_barriers == shared(*case[:-1])
    assert int(asked) + 8 * n_barriers + static <= SHARED


# Whole programs

PROGRAMS = {
    "weights in registers": Asked("bfloat16", 128, 200, 1, False),
    "a cluster, both directions": Asked("float32", 256, 64, 2, False),
    "exact, units filled up, lengths and resets": Asked("float32", 100, 7, 2, True),
    "many rows, lengths and resets": Asked("bfloat16", 256, 4096, 1, True),
}


@compiles
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("n_steps", [1, 20])
def test_a_pass_is_one_launch_and_no_loop(name, n_steps, reported):
    asked = PROGRAMS[name]
    T, B, I, H, D = n_steps, asked.n_rows, 8, asked.hidden_size, asked.directions
    flags = shape(T, B, dtype=bool)
    weights = [shape(*sizes, dtype=asked.dtype) for sizes in ((I, 3 * H), (H, 3 * H), (3 * H,), (3 * H,))]
    control = Control(valid=flags, reset=flags) if asked.control else Control()
    of = [Recurrence(shape(B, T, I, dtype=asked.dtype), GRUWeights(*weights), shape(B, H), control)] * D

    def states(recurrences):
        results = run(recurrences, implementation="resident", reverse=(False, True)[:D], time_major=False)
        return [result.hs for result in results]

    def gradient(recurrences):
        return jax.grad(lambda of: sum(hs.sum() for hs in states(of)), allow_int=True)(recurrences)

    for f, n_launches in ((states, 1), (gradient, 2)):
        text, report = reported(f, of)
        assert text.count('custom_call_target="mosaic_gpu_v2"') == n_launches
        assert " while(" not in text
        assert report.count(" 0 bytes spill stores, 0 bytes spill loads") == n_launches
