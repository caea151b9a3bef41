"""What a program of the documents or the examples takes of grujax, looked up without running it."""

import ast
import importlib
import inspect


def imported(tree):
    """By name what a program imports of grujax, but of the modules whose packages take seconds to import."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or "grujax": importlib.import_module(a.name) for a in node.names if a.name == "grujax"}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("grujax") and not node.module.endswith("aeon"):
            module = importlib.import_module(node.module)
            found |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
    return found


def calls_that_bind(program):
    """How many calls of grujax's functions there are; an error where one is missing or does not take its arguments."""
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
