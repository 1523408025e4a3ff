"""Starts the one-machine stack with a bare Python: `python3 ops/stack.py up`. See ops/local/commands.py."""

import sys
from pathlib import Path

# Python puts this file's folder first, whose modules are no top-level ones.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ops.local.commands import main  # noqa: E402

sys.exit(main())
