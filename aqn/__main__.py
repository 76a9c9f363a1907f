"""Entry point of `python -m aqn`."""

import sys

from aqn.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
