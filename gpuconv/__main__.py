"""`python -m gpuconv`."""

import sys

from gpuconv.cli import main

if __name__ == "__main__":
    sys.exit(main())
