"""Helpers to test the command line: a data set that is learnt in seconds, and ways to run a command."""

import random
import socket

import numpy as np

from grujax import cli

QUICK = ["--epochs", "3", "--hidden-size", "8", "--batch-size", "16", "--buckets", "1"]
"""Options of a training run that takes seconds."""


PROGRAM = (  # a background job ignores SIGINT, and its child processes inherit that
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from grujax.cli import main; sys.exit(main(sys.argv[1:]))"
)
PLAIN = "import sys; sys.modules['matplotlib'] = None; " + PROGRAM
"""The same as if Matplotlib were not installed: its pictures take seconds."""


def of_open_mpi(count):
    """Yields the environment variables that Open MPI would set for each of `count` processes.

    With them `jax.distributed` finds the first process. JAX derives its port from the number of the job, which Open MPI
    counts in steps of 4096. Two jobs on one port disturb each other, also from another test run: so the port is free.
    """
    ports = range(2**16 - 2**12, 2**16)
    port = next(port for port in random.SystemRandom().sample(ports, len(ports)) if not listens(port))
    of_job = {"OMPI_MCA_orte_hnp_uri": f"{(port - ports.start) * 2**12}.0;tcp://127.0.0.1:1"}
    for rank in map(str, range(count)):
        of_rank = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank}
        yield of_job | of_rank | {"OMPI_COMM_WORLD_SIZE": str(count)}


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def toy(path, count=40, channels=2, labels=("up", "down"), steps=6, seed=0, **changes):
    rng = np.random.default_rng(seed)
    y = np.array(labels)[np.arange(count) % len(labels)]
    x = rng.normal(size=(count, steps, channels)) + (np.arange(count) % len(labels))[:, None, None] * 3
    np.savez(path, **({"X": x, "y": y, "lengths": rng.integers(2, steps + 1, count)} | changes))
    return str(path)


def run(capsys, *arguments):
    code = cli.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err
