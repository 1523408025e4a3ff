"""The base class of a dependency, for the one that lives outside the edge (shared.relay)."""

from nameko.extensions import DependencyProvider

__all__ = ["DependencyProvider"]
