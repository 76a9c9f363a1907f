"""`python -m srdd`."""

import sys

from srdd.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
