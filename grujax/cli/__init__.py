"""The entry point of the command line. Importing JAX takes seconds, so signals are handled before that."""

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
from grujax.cli.streams import Output, print_to_stderr
from grujax.errors import InputError

SMALLER = "Lower --batch-size, --hidden-size or --members, or use more --devices."
COMPILED = "GRUJAX_COMPILED"
"""The environment variable whose value "off" disables the folder of compiled programs."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0: success. 1: a model was saved but could not be evaluated, or grujax failed a benchmark's check. 2: bad input, or
    output that cannot be written. 128 plus the number of a signal, as in shells: 130 after Ctrl-C, 143 after SIGTERM,
    129 after SIGHUP, 141 if the reader of standard output has gone away.
    """
    if arguments is None:
        keep_compiled(os.environ)
        os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras's default backend may not be installed
    output = Output(sys.stdout)
    with stop.handled():
        code = _run(sys.argv[1:] if arguments is None else arguments, output)
    output.flush()
    if output.error is None or code:
        return code
    if output.error.errno == errno.EPIPE:
        return 128 + 13  # the number of SIGPIPE, which Python on Windows does not define
    print_to_stderr(f"standard output: {output.error.strerror}")
    return 2


def keep_compiled(environment: MutableMapping[str, str]) -> None:
    """Makes JAX keep compiled programs in the user's cache folder. JAX's own variables win; `COMPILED=off` disables it.

    Each machine name has its own folder, because machine code for one processor may not run on another that shares the
    home directory. Other users cannot write to the folder, because its contents are executed.

    >>> keep_compiled(environment := {COMPILED: "off"})
    >>> environment
    {'GRUJAX_COMPILED': 'off'}
    """
    if environment.get(COMPILED) == "off" or "JAX_COMPILATION_CACHE_DIR" in environment:
        return
    caches = environment.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(caches, "grujax", f"compiled-{platform.node()}")
    with contextlib.suppress(OSError, RuntimeError):  # no home directory, or a full or read-only one
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _run(arguments: list[str], output: Output) -> int:
    if arguments == ["--version"]:
        output.write(f"grujax {version('grujax')}\n")
        return 0
    try:
        from grujax.cli.commands import run

        stop.check()  # an exception raised during an import may be lost
        return run(arguments, output)
    except KeyboardInterrupt:
        print_to_stderr(f"{stop.name} before the command finished. No partial files were left.")
        return stop.exit_code
    except InputError as error:
        print_to_stderr(str(error))
    except (MemoryError, RuntimeError) as error:
        reason = str(error) or "no memory left"
        if isinstance(error, RuntimeError) and not re.search("out of memory|RESOURCE_EXHAUSTED", reason, re.IGNORECASE):
            raise
        print_to_stderr(
            f"memory: expected enough for the model and a batch, found: {reason[-200:].rstrip('.')}. {SMALLER}"
        )
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print_to_stderr(f"{place}{error.strerror or error}. No partial files were left.")
    return 2
