"""Every test can fail: none returns early, swallows an error, asserts nothing, or is skipped without a reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
FILES = [str(path.relative_to(ROOT)) for path in sorted(ROOT.rglob("*.py"))]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
RAISE = {"raises", "warns", "fail", "refused"}


def of_itself(node):
    """Yields the nodes of a function, without those of functions inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            yield child
            yield from of_itself(child)


def names(node):
    """Yields every name, and the last part of every attribute."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr


def asserts(function, checkers):
    """Returns whether a function contains an assertion, or uses the name of a function that asserts."""
    if any(isinstance(node, ast.Assert) for node in ast.walk(function)):
        return True
    return any(name in checkers or name.startswith("assert_") for name in names(function))


def checkers_in(trees):
    """Returns the names of all functions that assert, directly or through another function."""
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    read = [(function.name, set(names(function))) for function in functions]
    found, n_found = RAISE | {function.name for function in functions if asserts(function, RAISE)}, 0
    while len(found) > n_found:
        n_found = len(found)
        found |= {name for name, of_it in read if not found.isdisjoint(of_it)}
    return found


def faults(tree, checkers):
    """Yields one line for each fault in the tests of a module."""
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_"):
            if any(isinstance(inner, ast.Return) for inner in of_itself(node)):
                yield f"{node.name} returns: a test runs to its end"
            if not asserts(node, checkers):
                yield f"{node.name} asserts nothing"
        elif isinstance(node, ast.ExceptHandler):
            if all(isinstance(inner, ast.Pass) or _is_ellipsis(inner) for inner in node.body):
                yield f"{where}: an exception is swallowed"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {keyword.arg for keyword in node.keywords}
            needed = {"skip": not node.args, "importorskip": True, "skipif": True, "xfail": not node.args}
            of_pytest = ast.unparse(node.func.value) in ("pytest", "pytest.mark")
            if of_pytest and needed.get(node.func.attr) and "reason" not in keywords:
                yield f"{where}: {node.func.attr} without a reason"


def _is_ellipsis(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


@pytest.fixture(scope="module")
def trees():
    return {file: ast.parse((ROOT / file).read_text()) for file in FILES}


@pytest.fixture(scope="module")
def checkers(trees):
    return checkers_in(trees.values())


@pytest.mark.parametrize("file", FILES)
def test_every_test_can_fail(file, trees, checkers):
    assert list(faults(trees[file], checkers)) == []


FAULTY = {
    "def test_a():\n    if x:\n        return\n    assert y": "returns",
    "def test_a():\n    for x in y:\n        with z:\n            return None\n    assert y": "returns",
    "def test_a():\n    x()": "asserts nothing",
    "def check(x):\n    return x\ndef test_a():\n    check(1)": "asserts nothing",
    "def test_a():\n    assert x\n    try:\n        y()\n    except ValueError:\n        pass": "swallowed",
    "def test_a():\n    assert x\n    try:\n        y()\n    except ValueError:\n        ...": "swallowed",
    "def test_a():\n    pytest.skip()\n    assert x": "skip without a reason",
    "torch = pytest.importorskip('torch')": "importorskip without a reason",
    "@pytest.mark.skipif(x)\ndef test_a():\n    assert x": "skipif without a reason",
}
SOUND = """
def check(x):
    def inner():
        return x
    assert inner()

def through(x):
    check(x)

def test_a():
    through(1)

def test_b():
    def f():
        return 1
    with pytest.raises(ValueError):
        f()

def test_c():
    jax.tree.map(np.testing.assert_array_equal, a, b)

def test_d():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch is None:
        pytest.skip("torch is None")
    try:
        check(torch)
    except ValueError as error:
        assert str(error)
"""


@pytest.mark.parametrize("source", FAULTY)
def test_each_fault_is_found(source):
    tree = ast.parse(source)
    (found,) = faults(tree, checkers_in([tree]))
    assert FAULTY[source] in found


def test_sound_tests_have_no_fault():
    tree = ast.parse(SOUND)
    assert list(faults(tree, checkers_in([tree]))) == []
