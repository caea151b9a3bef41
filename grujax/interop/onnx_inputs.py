"""The inputs of a stranger's graph: which of them is x, h0 and lengths, what sizes it fixes, and how they are fed."""

from collections.abc import Container
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop.onnx_graph import Model, attributes_of, module, name_of, nodes_in
from grujax.interop.prove import FIND


class Inputs(NamedTuple):
    """The names of a graph's inputs, and the sizes that it fixes, 0 where it leaves them open."""

    x: str
    h0: str | None
    lengths: str | None
    dims: dict[str, list[int]]
    rows_first: bool = False  # h0 is (B, L*D, H)


def inputs_of(proto: Model, grus: list[Any], n_states: int) -> Inputs:
    """x, h0 and lengths, told apart by which of them the first GRU node reads as what."""
    graph = proto.graph
    initial = {tensor.name for tensor in graph.initializer}
    given = {of.name: of for of in graph.input if of.name not in initial}

    def source(k: int) -> str | None:
        name = origin(proto, grus[0].input[k] if len(grus[0].input) > k else "")
        return name if name in given else None

    x = source(0)
    h0, lengths = (None if name == x else name for name in (source(5), source(4)))  # x's shape at most
    if x is None:
        raise InputError(name_of(grus[0]), "x, an input of the graph", repr(grus[0].input[0]), FIND)
    for name in given:
        known = name in (x, h0, lengths)
        require(known, name, "inputs x, h0 and lengths alone", "an input besides", f"Make it a constant. {FIND}")
    dims = {name: _dims(given[name], n) for name, n in ((x, 3), (h0, 3), (lengths, 1)) if name}
    first, second, _ = dims.get(h0 or "", (0, 0, 0))
    return Inputs(x, h0, lengths, dims, second == n_states != first)


def origin(proto: Model, name: str, known: Container[str] = ()) -> str:
    """The value that a value is made of, by the first inputs of the nodes that make it; the first known one."""
    producers = {out: node for node in proto.graph.node for out in node.output if out}
    for _ in producers:
        if name in known or name not in producers or not producers[name].input:
            break
        name = producers[name].input[0]
    return name


def _dims(of: Any, n_axes: int) -> list[int]:
    tensor = of.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim] if tensor.HasField("shape") else [0] * n_axes
    require(len(dims) == n_axes, of.name, f"{n_axes} axes", f"{len(dims)}")
    return dims


def feed(
    inputs: Inputs, batch_first: bool, x: NDArray, h0: NDArray | None, lengths: NDArray | None
) -> dict[str, NDArray]:
    found = {inputs.x: x if batch_first else x.swapaxes(0, 1)}
    if inputs.h0 is not None and h0 is not None:
        found[inputs.h0] = h0.swapaxes(0, 1) if inputs.rows_first else h0
    found |= {} if inputs.lengths is None or lengths is None else {inputs.lengths: lengths}
    return {name: np.ascontiguousarray(a) for name, a in found.items()}


def fixed(inputs: Inputs, batch_first: bool, size: tuple[int, int]) -> tuple[int, int]:
    """B and T, those that the graph fixes in the place of the ones that are asked for."""
    first, second, _ = inputs.dims[inputs.x]
    b, t = (first, second) if batch_first else (second, first)
    rows = [b, *(inputs.dims[name][k] for name, k in ((inputs.h0, 1 - inputs.rows_first), (inputs.lengths, 0)) if name)]
    return next((n for n in rows if n), size[0]), t or size[1]


def time_first(proto: Model) -> Model:
    """The same graph with `layout=0` in all GRU nodes, Transposes around those that had 1: the runtime has no other."""
    if not any(attributes_of(node).get("layout") for node in nodes_in(proto.graph) if node.op_type == "GRU"):
        return proto
    made, nodes = module().ModelProto.FromString(proto.SerializeToString()), []
    turn = module().helper.make_node
    for node in made.graph.node:
        nodes.append(node)
        if node.op_type != "GRU" or not attributes_of(node).get("layout"):
            continue
        kept = [a for a in node.attribute if a.name != "layout"]
        del node.attribute[:]
        node.attribute.extend(kept)
        for k in {0, 5} & set(range(len(node.input))):
            if node.input[k]:
                key = f"{name_of(node)}/input_{k}"
                nodes.insert(-1, turn("Transpose", [node.input[k]], [key], perm=[1, 0, 2]))
                node.input[k] = key
        for k, perm in enumerate(([2, 0, 1, 3], [1, 0, 2])[: len(node.output)]):
            if node.output[k]:
                key, node.output[k] = node.output[k], f"{name_of(node)}/output_{k}"
                nodes.append(turn("Transpose", [node.output[k]], [key], perm=perm))
    copies = [module().NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(copies)
    return made
