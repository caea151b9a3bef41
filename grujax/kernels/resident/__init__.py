"""The recurrence on a Hopper GPU: one launch runs all steps, the weights stay where they are multiplied.

`plan.py` says which design serves which sizes; `forward.py` and `backward.py` are the loops on the tensor cores, one
block or a cluster of blocks for each tile of rows; `exact.py` has both in exact float32; `exchange.py` and `mosaic.py`
are what they share; `call.py` makes a call of them. Pallas compiles them when they run: nothing is built before.
"""
