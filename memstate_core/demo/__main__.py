"""``python -m memstate_core.demo``: the same as ``memstate demo``."""

import sys

from memstate_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
