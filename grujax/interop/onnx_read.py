"""What a graph that somebody else exported computes.

Its GRU nodes and its head are read; how they are joined is not followed. Instead the graph is run, in a process of its
own, and of all models that these weights can be, time or batch first, pooled in one way or another, that one is taken
which gives the same at two sizes. Only operators are allowed with which agreement on random data means agreement.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from grujax.errors import InputError, require
from grujax.interop.hypotheses import NEAR, Chosen, choose, clearest, readings
from grujax.interop.onnx_fold import Constants, bound
from grujax.interop.onnx_graph import module
from grujax.interop.onnx_inputs import Inputs, feed, fixed, inputs_of, time_first
from grujax.interop.onnx_node import attributes_of, cells_of, name_of
from grujax.interop.onnx_run import run_apart
from grujax.interop.parts import Dense, put_together
from grujax.interop.prove import FIND, TWO_SIZES, Runner, data, outputs
from grujax.linen.layer import GRU
from grujax.linen.model import GRUModel

if TYPE_CHECKING:
    import onnx

MOVES = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Concat"}
MOVES |= {"Expand", "Shape", "Constant", "ConstantOfShape", "Cast"}
REDUCES = {"ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "Softmax", "Sigmoid"}
ON_INTEGERS = {"Add", "Sub", "Mul", "Div", "Equal", "Less", "Where", "Range"}
"""Arithmetic on shapes; of floats only an Add of the head's bias."""


class Found(NamedTuple):
    """What a graph computes: the model, and the runner of what it was seen to give. x, h0, lengths: its inputs."""

    model: nn.Module
    variables: dict
    runner: Runner


def read_graph(proto: "onnx.ModelProto") -> Found:
    """The model of a graph, as the runtime confirms it.

    Raises:
      InputError: naming the node that is more than GRU nodes in a row, one dense head, and what moves values; or, of a
        graph of these alone, how far each model is from it.
    """
    require(not proto.functions, "source", "operators of ONNX alone", f"a function {_first(proto.functions)!r}")
    require(not proto.graph.sparse_initializer, "source", "dense weights", "a sparse initializer")
    proto = time_first(proto)
    constants = Constants(proto)
    left = [node for node in proto.graph.node if not constants.folds(node)]
    grus = [node for node in left if node.op_type == "GRU"]
    others = sorted({node.op_type for node in proto.graph.node})
    remedy = "Exporters write nn.GRUCell in single steps."
    require(bool(grus), "source", "a GRU node", f"none, but {others}", remedy)
    for node in left:
        _check(node, constants)
    fields, cells = _cells(grus, constants)
    head = _head(left, constants)
    bidirectional = fields.pop("bidirectional")
    model, variables = put_together(cells, head, bidirectional=bidirectional, **fields)
    gru, weights = model, variables
    if isinstance(model, GRUModel):
        gru, weights = GRU(**model.fields_of(GRU)), {"params": variables["params"]["encoder"]["gru"]}
    return _tried(proto, inputs_of(proto, grus, gru), gru, weights, model, variables, head)


def _tried(
    proto: "onnx.ModelProto",
    inputs: Inputs,
    gru: Any,
    weights: dict,
    model: Any,
    variables: dict,
    head: tuple[str, Dense] | None,
) -> Found:
    """The model that agrees with the graph at two sizes, with time or batch first."""
    stated = Runner(lambda *_: {}, inputs.h0 is not None, inputs.lengths is not None)
    plans = [(batch_first, size) for batch_first, size in product((True, False), TWO_SIZES)]
    plans = [(batch_first, fixed(inputs, batch_first, size)) for batch_first, size in plans]
    given = [data(gru, weights, stated, 0, size) for _, size in plans]
    feeds = [feed(inputs, batch_first, *of) for (batch_first, _), of in zip(plans, given, strict=True)]
    results, refusals, half = run_apart(proto, feeds), [], gru.param_dtype == jnp.float16
    for first in (0, 2):
        batch_first, sizes = plans[first][0], [size for _, size in plans[first : first + 2]]
        try:
            chosen: list[Chosen] = []
            for k in (first, first + 1):
                theirs = results[k]
                if isinstance(theirs, InputError):
                    raise theirs
                ours = outputs(gru, weights, *given[k]) | {"lengths": given[k][2]}
                tensors = (head[1].kernel, head[1].bias) if head else (None, None)
                alone = [r for r in readings(gru, ours, *tensors) if not chosen or r.words == chosen[0].reading.words]
                name, near = head[0] if head else _first(proto.graph.output), NEAR * (10 if half else 1)
                chosen.append(choose(name, theirs, alone, near))
        except InputError as error:
            refusals.append(error)
            continue
        seen = {sizes[k]: (chosen[k], results[first + k], given[first + k]) for k in range(2)}
        found = model.clone(**chosen[0].reading.fields)
        runner = Runner(_call(proto, inputs, batch_first, seen), *stated[1:3], tuple(dict.fromkeys(sizes)))
        return Found(found, variables, runner)
    raise clearest(refusals)


def _call(proto: "onnx.ModelProto", inputs: Inputs, batch_first: bool, seen: dict) -> Callable:
    """A `Runner.call` that gives what was seen of the data of the proof, and runs the graph on others."""
    (reading, *_), *_ = seen.values()

    def call(x: NDArray, h0: NDArray | None, lengths: NDArray | None) -> dict[str, NDArray]:
        size = x.shape[:2]
        chosen, theirs, of = seen.get(size, (reading, None, None))
        if theirs is None or not jax.tree.all(jax.tree.map(np.array_equal, of, (x, h0, lengths))):
            wanted = fixed(inputs, batch_first, size)
            remedy = "Reading has proved it there; or open its axes."
            require(wanted == size, inputs.x, f"B, T = {wanted}, which the graph fixes", size, remedy)
            (theirs,) = run_apart(proto, [feed(inputs, batch_first, x, h0, lengths)])
            if isinstance(theirs, InputError):
                raise theirs
        return chosen.outputs(theirs, size)

    return call


def _cells(grus: list[Any], constants: Constants) -> tuple[dict, dict]:
    fields: dict[str, Any] = {}
    cells: dict[str, Any] = {}
    for node in grus:
        mine, of_layer = cells_of(node, constants.weights(node))
        fields = fields or mine
        for key in fields.keys() | mine.keys():
            expected = f"{key}={fields.get(key, False)}, as the GRU before it"
            require(mine.get(key) == fields.get(key), name_of(node), expected, mine.get(key), FIND)
        cells |= {f"{name_of(node)}: {key}": cell for key, cell in of_layer.items()}
    return fields, cells


def _check(node: "onnx.NodeProto", constants: Constants) -> None:
    """Raises `InputError` unless the operator is one with which agreement on random data means agreement."""
    name, op = name_of(node), node.op_type
    require(node.domain in ("", "ai.onnx"), name, "operators of ONNX alone", f"{op} of {node.domain!r}", FIND)
    served = "GRU nodes, one dense head, and operators that move values"
    if op in ("Expand", "ConstantOfShape") and node.input[-1] in constants.values:  # before it takes memory anywhere
        bound(name, abs(math.prod(int(n) for n in constants.values[node.input[-1]])))
    if op in ON_INTEGERS and all(constants.integer(key) for key in node.input):
        return
    is_bias = op == "Add" and any(key in constants.values for key in node.input)
    require(op != "Add" or is_bias, name, "an Add of the bias of the one dense head", "another Add", FIND)
    known = op in {"GRU", "Gemm", "MatMul", *MOVES, *REDUCES} or is_bias
    require(known, name, served, f"a node {op}", FIND)
    if op == "Cast":
        of, to = constants.kinds.get(node.input[0]), attributes_of(node)["to"]
        integers = (module().TensorProto.INT32, module().TensorProto.INT64)
        stays = to == of or {to, of} <= set(integers)
        require(stays, name, "a Cast that changes nothing", f"one to dtype {to}", FIND)


def _head(left: list[Any], constants: Constants) -> tuple[str, Dense] | None:
    """The one product with a constant matrix, and the bias behind it."""
    found = [node for node in left if node.op_type in ("Gemm", "MatMul")]
    if not found:
        return None
    for node in found[1:]:
        raise InputError(name_of(node), "one dense head behind the last GRU", "one besides", FIND)
    node, name, attributes = found[0], name_of(found[0]), attributes_of(found[0])
    plain = attributes.get("alpha", 1.0) == 1 and attributes.get("beta", 1.0) == 1 and not attributes.get("transA")
    require(plain, name, "alpha 1, beta 1 and transA 0", attributes)
    kernel = constants.values.get(node.input[1])
    if kernel is None or node.input[0] in constants.values:
        raise InputError(name, "values of the GRU times a constant matrix", "something else", FIND)
    require(kernel.ndim == 2, name, "a matrix", f"shape {kernel.shape}")
    kernel = kernel.T if attributes.get("transB") else kernel
    bias = constants.values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "MatMul":
        adds = [of for of in left if of.op_type == "Add" and node.output[0] in of.input]
        keys = [key for of in adds for key in of.input if key in constants.values]
        bias = constants.values[keys[0]] if len(keys) == 1 else None
    width = kernel.shape[1]
    if bias is not None:
        require(bias.shape in ((width,), (1, width)), name, f"a bias of shape ({width},)", bias.shape)
        bias = bias.reshape(width)
    return name, Dense(kernel, bias)


def _first(protos: Any) -> str:
    return protos[0].name if protos else ""
