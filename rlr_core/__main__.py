"""`python -m rlr_core` is `rlr`."""

import sys

from rlr_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
