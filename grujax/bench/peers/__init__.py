"""The GRUs that are measured, each written as its own documentation tells a user to write it.

All take batch-major input, but for the two that run ONNX. A library without lengths (Equinox, Haiku, a scan over Flax's
cell), or slow with them (OpenVINO), computes the padding too, as it does for its users. A new peer is one file with one
function `(arrays, threads) -> Runs`, and one row here.
"""

from functools import partial

from grujax.bench.peers import equinox, flax, haiku, keras, onnxruntime, openvino, ours, torch
from grujax.bench.peers.peer import Peer
from grujax.kernels.table import KERNELS

NO_RESETS = {"resets": "no resets"}

PEERS: dict[str, Peer] = {
    "grujax": Peer(ours.layers),
    "grujax-before": Peer(partial(ours.layers, reset_after=False), reset_after=False),  # the GRU that Haiku computes
    "grujax-packed": Peer(ours.packed_rows, lacks={"dense": "not ragged"}),
    "torch": Peer(torch.layers, ("torch",), lacks=NO_RESETS),
    "flax": Peer(flax.rnn, ("flax",), lacks=NO_RESETS),
    "flax-scan": Peer(flax.scan, ("flax",)),
    "keras": Peer(keras.layers, ("keras",), lacks=NO_RESETS),
    "equinox": Peer(equinox.layers, ("equinox",)),
    "haiku": Peer(haiku.layers, ("haiku",), reset_after=False),
    "onnxruntime": Peer(
        onnxruntime.session,
        ("onnx", "onnxruntime"),
        lacks={**NO_RESETS, "bfloat16": "no bfloat16 on CPU", "gpu": "CPU only"},
    ),
    "openvino": Peer(openvino.compiled, ("onnx", "openvino"), lacks={**NO_RESETS, "gpu": "CPU only"}),
}


def implementations(platform: str) -> dict[str, Peer]:
    """On an accelerator grujax once more for each kernel that is not for the CPU alone, as "grujax xla"; else none."""
    own = (None, {"gpu": "cuda"}.get(platform, platform))
    names = [name for name, kernel in KERNELS.items() if kernel.platform in own] if platform != "cpu" else []
    return {f"grujax {name}": Peer(partial(ours.implementation, name)) for name in names}
