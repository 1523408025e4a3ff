"""What an extension of Nameko is made of, for the extensions of ours that live outside the edge."""

from nameko.extensions import DependencyProvider

__all__ = ["DependencyProvider"]
