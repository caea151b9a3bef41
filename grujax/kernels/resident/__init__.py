"""The kernel for Hopper GPUs: one launch runs all steps, and the weights stay in shared memory or registers.

`plan.py` chooses the design for the sizes of a call; `forward.py` and `backward.py` are the loops on the tensor cores,
with one block or a cluster of blocks for each tile of rows; `exact.py` has both loops in exact float32; `exchange.py`,
`cluster.py` and `mosaic.py` contain the parts that they share; `call.py` connects them to the primitives. Pallas
compiles the kernels when they are first called: nothing is built at install.
"""
