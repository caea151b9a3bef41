"""How far it is from a model to the equations: the functions of grujax that lie between."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import grujax
from grujax import GRUModel
from grujax.kernels import cpu_loops, explain, step

ROOT = str(Path(grujax.__file__).parent)
MOST = 12
SIZES = {  # B, T, H at which None takes the kernel on CPU
    "xla": (2, 5, 4),
    "brief": (2, 1, 4),
    "joint": (1024, 3, 2048),
    "halves": (16, 3, 128),
    "columns": (8, 3, 512),
}


@pytest.mark.parametrize("kernel", SIZES)
def test_few_functions_lie_between_a_model_and_the_equations(kernel, monkeypatch):
    """Traced, not compiled; `step` itself counts."""
    found, equations = [], step.step

    def noting(*args, **options):
        frame, path = sys._getframe(1), ["kernels/step.py: step"]
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(ROOT):
                path.append(f"{Path(code.co_filename).relative_to(ROOT).as_posix()}: {code.co_name}")
            frame = frame.f_back
        found.append(path[::-1])
        return equations(*args, **options)

    monkeypatch.setattr(step, "step", noting)
    monkeypatch.setattr(cpu_loops, "step", noting)
    n_rows, n_steps, hidden_size = SIZES[kernel]
    assert explain(sizes=(n_steps, n_rows, hidden_size), platform="cpu").implementation == kernel
    model, x = GRUModel(hidden_size, 3), jax.ShapeDtypeStruct((n_rows, n_steps, 4), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    jax.clear_caches()  # what was traced before would not be traced again
    found.clear()
    jax.eval_shape(lambda variables, x: model.apply(variables, x, lengths=[1] * n_rows), variables, x)
    assert found and found[0][0] == "linen/model.py: __call__"
    longest = max(found, key=len)
    assert len(longest) <= MOST, f"{len(longest)} functions:\n" + "\n".join(longest)


def test_jit_is_entered_once(monkeypatch):
    """One program under the user's own: that of `grujax.kernels.run`, one a layer."""
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
