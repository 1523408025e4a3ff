"""Imported first by tests that run services in the process: eventlet patches before anything opens a socket."""

import warnings

warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
import eventlet  # noqa: E402

eventlet.monkey_patch()
