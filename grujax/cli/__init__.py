"""The command line: train, evaluate, predict, convert, export, bench, doctor."""

import sys
from typing import Annotated

import tyro
from rich.console import Console

from grujax.cli.bench import Bench
from grujax.cli.convert import Convert, Export
from grujax.cli.doctor import Doctor
from grujax.cli.train import Evaluate, Predict, Train
from grujax.errors import InputError

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console = Console(markup=False)  # "[plot]" in a remedy or a path is text
    try:
        command = tyro.cli(Command, args=arguments, prog="grujax", description=__doc__)  # pyright: ignore
        return command.run(console)
    except KeyboardInterrupt:
        message, code = "interrupted before there was a model to save or the last table to show", 130
    except InputError as error:
        message, code = str(error), 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        message, code = f"{place}{error.strerror or error}. Nothing half-written was left behind.", 2
    print(f"grujax: {message}", file=sys.stderr)
    return code
