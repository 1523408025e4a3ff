"""Imported first by tests that run services in the process: eventlet patches before anything opens a socket."""

import shared.edge.patched  # noqa: F401
