"""Compiles programs for an H100 or a TPU without having one: the compilers need only their packages."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929871872
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The description of the GPU for XLA (GpuTargetConfigProto)."""


def compiled_for(target: str, f: Callable[..., Any], *arguments: Any) -> jax.stages.Compiled:
    """Compiles f for one chip.

    Args:
      target: "H100", for which jax's CUDA plugin compiles, or libtpu's name of a TPU, such as "v5e".
      arguments: the arguments of f, pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Raises:
      NotImplementedError, RuntimeError: if the plugin or libtpu is not installed.
    """
    if target == "H100":
        topology = topologies.get_topology_desc("1x1x1", "cuda", topology="1x1x1", target_config=H100)
    else:
        topology = topologies.get_topology_desc(f"{target}:2x2x1", "tpu")
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    return jax.jit(f, out_shardings=sharding).lower(*shapes).compile()
