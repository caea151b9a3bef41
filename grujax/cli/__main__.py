"""`python -m grujax.cli`."""

import sys

from grujax.cli import main

if __name__ == "__main__":
    sys.exit(main())
