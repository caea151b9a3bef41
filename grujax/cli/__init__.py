"""The command line. Importing JAX takes seconds: signals are handled before."""

import errno
import sys
from importlib.metadata import version

from grujax.cli.signals import stop
from grujax.cli.streams import Output, tell
from grujax.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 is success; 1: a model is saved but could not be evaluated, or grujax failed a benchmark's check; 2: bad input, or
    output that cannot be written; 128 plus the number of a signal, as in shells: 130 after Ctrl-C, 143 after
    SIGTERM, 129 after SIGHUP, 141 where the reader of standard output has gone.
    """
    output = Output(sys.stdout)
    with stop.handled():
        code = _run(sys.argv[1:] if arguments is None else arguments, output)
    output.flush()
    if output.error is None or code:
        return code
    if output.error.errno == errno.EPIPE:
        return 128 + 13  # SIGPIPE, which Windows has not
    tell(f"standard output: {output.error.strerror}")
    return 2


def _run(arguments: list[str], output: Output) -> int:
    if arguments == ["--version"]:
        output.write(f"grujax {version('grujax')}\n")
        return 0
    try:
        from grujax.cli.commands import run

        stop.check()  # what is raised while a module is imported may be lost
        return run(arguments, output)
    except KeyboardInterrupt:
        tell(f"{stop.name} before the end. Nothing half-written was left behind")
        return stop.exit_code
    except InputError as error:
        tell(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        tell(f"{place}{error.strerror or error}. Nothing half-written was left behind.")
    return 2
