"""The recurrence on a TPU, in Pallas: weights and state in VMEM, all steps of a direction in one launch.

`limits.py` says what it serves and how a call is cut into blocks; `launch.py` is one launch over them; `forward.py` and
`backward.py` are the two loops; `call.py` makes a call of them. No default takes this kernel: it was interpreted and
compiled, and never ran on a TPU (docs/decisions/tpu-kernel.md).
"""
