"""Copies from the shared memory of a block to the other blocks of its cluster, in PTX, because Pallas cannot do it.

A block sends its part of a step to each other block as one copy of the copy engine (cp.async.bulk), which counts its
bytes on a barrier of the receiver (mbarrier). A block waits on its own barrier until the parts of all others have
arrived.

With two buffers nothing else is needed. A block sends a step only after it has read the previous one, so a block that
has all parts of a step may overwrite the step before it. With one buffer, a block arrives at the barrier of the cluster
when it has read a step, and sends the next step when all blocks have arrived.

The interpreter does not run PTX: see `Interpreted` in exchange.py.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic import gpu

from grujax.kernels.resident.mosaic import plgpu, swizzled

utils: Any = gpu.utils
BARRIER, NUMBER = plgpu.RefType(), plgpu.Layout.WG_SPLAT


def barriers(n: int) -> Any:
    """Shared memory for n barriers: PTX cannot use the barriers of Pallas."""
    return plgpu.SMEM((n, 2), jnp.uint32)


def _ptx(text: str, *arguments: Any) -> None:
    utils.inline_ptx("{ " + " ".join(text.split()) + " }", *arguments, has_side_effects=True, convergent=True)


@plgpu.inline_mgpu(arg_types=(BARRIER,))
def begin(_: Any, barrier: Any) -> None:
    """Initialises a barrier, on which the block itself arrives once per step."""
    text = """
        .reg .pred first; .reg .b32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first mbarrier.init.shared::cta.b64 [$0], 1;
        fence.mbarrier_init.release.cluster;
    """
    _ptx(text, utils.memref_ptr(barrier))


@plgpu.inline_mgpu()
def arrive(_: Any) -> None:
    """Arrives at the barrier of the cluster; `depart` waits until all blocks have arrived."""
    _ptx("barrier.cluster.arrive.release.aligned;")


@plgpu.inline_mgpu()
def depart(_: Any) -> None:
    """Waits until all blocks of the cluster have arrived."""
    _ptx("barrier.cluster.wait.acquire.aligned;")


def send(part: Any, barrier: Any, n_bytes: int, blocks: int) -> None:
    """Sends a part of the operand to the same address in each other block; it is n_bytes of contiguous shared memory.

    Thread i of the first warp sends to block i. The thread with the number of this block arrives at the local barrier.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(swizzled(part.dtype)), BARRIER))
    def copies(_: Any, part: Any, barrier: Any) -> None:
        text = f"""
            .reg .pred here, there; .reg .b32 to, me, part, barrier;
            mov.u32 to, %tid.x;
            mov.u32 me, %cluster_ctarank;
            setp.eq.u32 here, to, me;
            setp.lt.u32 there, to, {blocks};
            @here bra arrive;
            @!there bra end;
            mapa.shared::cluster.u32 part, $0, to;
            mapa.shared::cluster.u32 barrier, $1, to;
            cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [part], [$0], {n_bytes}, [barrier];
            bra end;
            arrive: mbarrier.arrive.expect_tx.shared::cta.b64 _, [$1], {n_bytes * (blocks - 1)};
            end:
        """
        _ptx(text, utils.memref_ptr(part), utils.memref_ptr(barrier))

    copies(part, barrier)


@plgpu.inline_mgpu(arg_types=(BARRIER, NUMBER))
def wait(_: Any, barrier: Any, turn: Any) -> None:
    """Waits until the barrier has completed its phase number `turn`, counted from 0."""
    text = """
        .reg .pred done; .reg .b32 parity;
        and.b32 parity, $1, 1;
        again: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], parity;
        @!done bra again;
    """
    _ptx(text, utils.memref_ptr(barrier), turn.registers.item())
