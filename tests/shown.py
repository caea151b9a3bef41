"""Checks what a program of the documents or examples uses of grujax, without running it."""

import ast
import importlib
import inspect


def imported(tree):
    """Returns what a program imports from grujax, by name, except from the modules that take seconds to import."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or "grujax": importlib.import_module(a.name) for a in node.names if a.name == "grujax"}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("grujax") and not node.module.endswith("aeon"):
            module = importlib.import_module(node.module)
            found |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
    return found


def calls_that_bind(program):
    """Counts the calls of grujax's functions. Raises if a function is missing or does not take the arguments."""
    tree = ast.parse(program)
    space = imported(tree)

    def of(node):
        if isinstance(node, ast.Attribute):
            owner = of(node.value)
            return None if owner is None else getattr(owner, node.attr)
        return space.get(node.id) if isinstance(node, ast.Name) else None

    calls = [(call, function) for call in ast.walk(tree) if isinstance(call, ast.Call) and (function := of(call.func))]
    for call, function in calls:
        given = [None for a in call.args if not isinstance(a, ast.Starred)]
        inspect.signature(function).bind_partial(*given, **{word.arg: None for word in call.keywords if word.arg})
    return len(calls)
