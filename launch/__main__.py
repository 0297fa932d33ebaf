"""`python -m launch COMMAND ...` is the same as `sternum COMMAND ...`."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
