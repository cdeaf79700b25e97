"""`python -m gambeson` is the command `gambeson`."""

import sys

from gambeson.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
