"""Train, evaluate and convert GRU models and measure their speed; `grujax --version` prints the version."""

import difflib

import tyro
from rich.console import Console

from grujax.cli.bench import Bench
from grujax.cli.convert import Convert, Export, Find
from grujax.cli.doctor import Doctor
from grujax.cli.evaluate import Evaluate, Predict
from grujax.cli.streams import Output, print_to_stderr
from grujax.cli.train import Train

COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "convert": Convert,
    "find": Find,
    "export": Export,
    "bench": Bench,
    "doctor": Doctor,
}


def run(arguments: list[str], output: Output) -> int:
    """Runs the command named by the first argument and returns its exit code."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        print_to_stderr(f"unknown command {arguments[0]!r}.{meant} Commands: {', '.join(COMMANDS)}.")
        return 2
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="grujax", description=__doc__)
    # without markup, since "[plot]" in a message or a path is plain text
    return command.run(Console(file=output, markup=False))  # pyright: ignore[reportArgumentType]
