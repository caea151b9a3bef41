"""The GRUs to measure, each written as its library's documentation recommends.

All take batch-major input, except the two that run ONNX. A library that has no lengths (Equinox, Haiku, a scan over
Flax's cell) or is slow with them (OpenVINO) also computes the padding, as it does for its users. A new peer needs one
file with one function `(arrays, threads) -> Runs`, and one row in `PEERS`.
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
    """Returns, on an accelerator, a peer of grujax for each kernel that runs on it, such as "grujax xla"; else none."""
    platforms = (None, {"gpu": "cuda"}.get(platform, platform))
    names = [name for name, kernel in KERNELS.items() if kernel.platform in platforms] if platform != "cpu" else []
    return {f"grujax {name}": Peer(partial(ours.implementation, name)) for name in names}
