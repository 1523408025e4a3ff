"""Unit tests need no servers; they import services, which need eventlet's patches first."""

import tests.patched  # noqa: F401
