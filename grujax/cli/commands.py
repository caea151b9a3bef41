"""The command line: train, evaluate, predict, convert, find, export, bench, doctor; `grujax --version` says which."""

import difflib

import tyro
from rich.console import Console

from grujax.cli.bench import Bench
from grujax.cli.convert import Convert, Export, Find
from grujax.cli.doctor import Doctor
from grujax.cli.evaluate import Evaluate, Predict
from grujax.cli.streams import Output, tell
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
    """Runs the command that the arguments name, and returns its exit code."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        tell(f"no command {arguments[0]!r}.{meant} Commands: {', '.join(COMMANDS)}.")
        return 2
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="grujax", description=__doc__)
    # no markup: "[plot]" in a remedy or a path is text
    return command.run(Console(file=output, markup=False))  # pyright: ignore[reportArgumentType]
