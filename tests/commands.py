"""The command line in tests: a data set that is learnt in seconds, and a command run as a user runs it."""

import numpy as np

from grujax import cli

QUICK = ["--epochs", "3", "--hidden-size", "8", "--batch-size", "16", "--buckets", "1"]
"""Options of a training run that takes seconds."""


PROGRAM = (  # a job in the background ignores SIGINT, and so would what it starts
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from grujax.cli import main; sys.exit(main(sys.argv[1:]))"
)
PLAIN = "import sys; sys.modules['matplotlib'] = None; " + PROGRAM
"""The same without pictures, which take seconds: as where Matplotlib is not installed."""


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
