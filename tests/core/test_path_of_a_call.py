"""Limits how many functions of grujax a call passes through from a model to the equations."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from implementations import HERE

import grujax
from grujax import GRUModel
from grujax.kernels import step
from grujax.kernels.calls import primitives

ROOT = str(Path(grujax.__file__).parent)
MOST = 13
ENDS = {  # kernel -> the last function of the path: the equations, or the shapes of the C++ handler's results
    "native": (primitives, "forward_shapes"),
    "xla": (step, "step"),
    "autodiff": (step, "step"),
}


@pytest.mark.parametrize("kernel", HERE)
def test_few_functions_lie_between_a_model_and_the_equations(kernel, monkeypatch):
    """The call is only traced. The last function is counted too."""
    (module, name), found = ENDS[kernel], []
    end = getattr(module, name)

    def noting(*args, **options):
        frame, path = sys._getframe(1), [name]
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(ROOT) and not code.co_name.startswith("<"):  # comprehensions before 3.12
                path.append(f"{Path(code.co_filename).relative_to(ROOT).as_posix()}: {code.co_name}")
            frame = frame.f_back
        found.append(path[::-1])
        return end(*args, **options)

    monkeypatch.setattr(module, name, noting)
    model, x = GRUModel(4, 3, implementation=kernel), jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    x = jax.ShapeDtypeStruct((11, 13, 4), jnp.float32)  # a new shape: the old one would not be traced again
    found.clear()
    jax.eval_shape(lambda variables, x: model.apply(variables, x, lengths=[1] * 11), variables, x)
    assert found and found[0][0] == "linen/model.py: __call__"
    longest = max(found, key=len)
    assert len(longest) <= MOST, f"{len(longest)} functions:\n" + "\n".join(longest)


def test_jit_is_entered_once(monkeypatch):
    """Inside the user's program the only jit is that of `grujax.kernels.run`, once per layer."""
    model = GRUModel(4, 3, num_layers=2)
    x = jnp.ones((2, 5, 4), jnp.float32)
    variables = model.init(jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(lambda x: model.apply(variables, x, lengths=[5, 2]))(x)

    def depth(jaxpr):
        inside = [0]
        for equation in jaxpr.eqns:
            own = equation.primitive.name in ("jit", "pjit") and equation.params["name"] == "_run"
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
                if hasattr(inner, "eqns"):
                    inside.append(own + depth(inner))
        return max(inside)

    assert depth(jaxpr) == 1
    assert sum(equation.params.get("name") == "_run" for equation in jaxpr.eqns) == 2
