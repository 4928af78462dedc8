"""``python -m orchestrator`` is ``fedveil``."""

import sys

from fedveil.orchestrator.cli import main

if __name__ == "__main__":
    sys.exit(main())
