"""`python -m mimkit`: the command line, for machines where the `mimkit` script is not on the path."""

import sys

from mimkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
