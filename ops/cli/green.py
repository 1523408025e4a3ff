"""Makes a command's process cooperative, as shared.edge.patched does a service's: import it before the engine.

Eventlet's own resolver is a fifth of a command's start, and a command may well wait while a name is looked up.
"""

import os

os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
from shared.edge import patched  # noqa: F401
