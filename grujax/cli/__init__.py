"""The command line: train, evaluate, predict, convert, find, export, bench, doctor; `grujax --version` says which."""

import difflib
import errno
import sys
from importlib.metadata import version

import tyro
from rich.console import Console

from grujax.cli.bench import Bench
from grujax.cli.convert import Convert, Export, Find
from grujax.cli.doctor import Doctor
from grujax.cli.evaluate import Evaluate, Predict
from grujax.cli.signals import stop
from grujax.cli.streams import Output, tell
from grujax.cli.train import Train
from grujax.errors import InputError

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


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 is success; 1: a model is saved but could not be evaluated, or grujax failed a benchmark's check; 2: bad input, or
    output that cannot be written; 128 plus the number of a signal, as in shells: 130 after Ctrl-C, 143 after
    SIGTERM, 129 after SIGHUP, 141 where the reader of standard output has gone.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    output = Output(sys.stdout)
    with stop.handled():
        # no markup: "[plot]" in a remedy or a path is text
        code = _run(arguments, Console(file=output, markup=False))  # pyright: ignore[reportArgumentType]
    output.flush()
    if output.error is None or code:
        return code
    if output.error.errno == errno.EPIPE:
        return 128 + 13  # SIGPIPE, which Windows has not
    tell(f"standard output: {output.error.strerror}")
    return 2


def _run(arguments: list[str], console: Console) -> int:
    if arguments == ["--version"]:
        console.print(f"grujax {version('grujax')}", highlight=False)
        return 0
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        tell(f"no command {arguments[0]!r}.{meant} Commands: {', '.join(COMMANDS)}.")
        return 2
    try:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="grujax", description=__doc__)
        return command.run(console)
    except KeyboardInterrupt:
        tell(f"{stop.name} before the end. Nothing half-written was left behind")
        return stop.exit_code
    except InputError as error:
        tell(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        tell(f"{place}{error.strerror or error}. Nothing half-written was left behind.")
    return 2
