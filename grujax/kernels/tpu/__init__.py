"""The TPU kernel in Pallas: weights and state in VMEM, all steps of a direction in one launch.

`limits.py` says which calls it serves and divides a call into blocks; `launch.py` runs one launch over the blocks;
`forward.py` and `backward.py` are the two loops; `call.py` connects them to the primitives. `implementation=None` never
chooses this kernel, because it was interpreted and compiled, but never run on a TPU (docs/decisions/tpu-kernel.md).
"""
