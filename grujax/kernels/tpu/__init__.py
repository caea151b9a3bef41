"""The kernel for TPU, in Pallas: weights and state in VMEM, all steps of a direction in one launch.

No default takes it: it was interpreted and compiled, and never ran on a TPU (docs/decisions/tpu-kernel.md).
"""

from grujax.kernels.tpu.call import tpu_forward, tpu_transpose
from grujax.kernels.tpu.limits import tpu_refuses

__all__ = ["tpu_forward", "tpu_refuses", "tpu_transpose"]
