"""From the shared memory of a block into that of the others of its cluster: PTX, for which Pallas has no words.

A block's part of a step goes to each other block as one copy of the copy engine (cp.async.bulk), which counts its bytes
on a barrier there (mbarrier). A block waits on its own barrier until the parts of all others are there.

With two buffers nothing else is needed. A block sends a step only after it has read the one before: who has all parts
of a step may write over the step before it. With one buffer a block arrives at the barrier of the cluster when it has
read a step, and sends the next when all have arrived.

The interpreter runs no PTX: see `Interpreted` in exchange.py.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic import gpu

from grujax.kernels.resident.mosaic import plgpu, swizzled

utils: Any = gpu.utils
BARRIER, NUMBER = plgpu.RefType(), plgpu.Layout.WG_SPLAT


def barriers(n: int) -> Any:
    """Shared memory of n barriers: PTX cannot have Pallas' own."""
    return plgpu.SMEM((n, 2), jnp.uint32)


def _ptx(text: str, *arguments: Any) -> None:
    utils.inline_ptx("{ " + " ".join(text.split()) + " }", *arguments, has_side_effects=True, convergent=True)


@plgpu.inline_mgpu(arg_types=(BARRIER,))
def begin(_: Any, barrier: Any) -> None:
    """Makes a barrier, on which a block itself arrives once a step."""
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
    """This block is there; `depart` waits until all blocks of the cluster are."""
    _ptx("barrier.cluster.arrive.release.aligned;")


@plgpu.inline_mgpu()
def depart(_: Any) -> None:
    _ptx("barrier.cluster.wait.acquire.aligned;")


def send(part: Any, barrier: Any, n_bytes: int, blocks: int) -> None:
    """A part of the operand, n_bytes of contiguous shared memory, to where it lies here in each other block.

    Thread i of the first warp sends to block i; the one whose block this is arrives at the barrier here.
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
    """Until the barrier has completed its turn number `turn`, counted from 0."""
    text = """
        .reg .pred done; .reg .b32 parity;
        and.b32 parity, $1, 1;
        again: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], parity;
        @!done bra again;
    """
    _ptx(text, utils.memref_ptr(barrier), turn.registers.item())
