"""The command line. Importing JAX takes seconds: signals are handled before."""

import contextlib
import errno
import os
import platform
import re
import sys
from collections.abc import MutableMapping
from importlib.metadata import version
from pathlib import Path

from grujax.cli.signals import stop
from grujax.cli.streams import Output, tell
from grujax.errors import InputError

SMALLER = "Lower --batch-size, --hidden-size or --members, or use more --devices."
COMPILED = "GRUJAX_COMPILED"
"""The environment variable that switches the folder of compiled programs off."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 is success; 1: a model is saved but could not be evaluated, or grujax failed a benchmark's check; 2: bad input, or
    output that cannot be written; 128 plus the number of a signal, as in shells: 130 after Ctrl-C, 143 after
    SIGTERM, 129 after SIGHUP, 141 where the reader of standard output has gone.
    """
    if arguments is None:
        keep_compiled(os.environ)
        os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras' own default is a package that may not be there
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


def keep_compiled(environment: MutableMapping[str, str]) -> None:
    """JAX keeps what it compiles under the user's cache folder; JAX's own variables win, and `COMPILED=off` ends it.

    A folder for each name of a machine: machine code of one processor may not run on another with the same home. Others
    cannot write to it: what lies in it is run.

    >>> keep_compiled(environment := {COMPILED: "off"})
    >>> environment
    {'GRUJAX_COMPILED': 'off'}
    """
    if environment.get(COMPILED) == "off" or "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    caches = environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(caches, "grujax", f"compiled-{platform.node()}")
    with contextlib.suppress(OSError, RuntimeError):  # no home, or it is full or read-only
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


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
    except (MemoryError, RuntimeError) as error:
        reason = str(error) or "none left"
        if isinstance(error, RuntimeError) and not re.search("out of memory|RESOURCE_EXHAUSTED", reason, re.IGNORECASE):
            raise
        tell(f"memory: expected enough for the model and a batch, found: {reason[-200:].rstrip('.')}. {SMALLER}")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        tell(f"{place}{error.strerror or error}. Nothing half-written was left behind.")
    return 2
