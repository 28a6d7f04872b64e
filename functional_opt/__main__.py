"""`python -m functional_opt` is the command `functional-opt`."""

import sys

from ._cli.main import main


if __name__ == "__main__":
    sys.exit(main())
