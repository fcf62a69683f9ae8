"""``python -m hyperconformer.cli``."""

import sys

from hyperconformer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
