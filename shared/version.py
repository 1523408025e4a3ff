"""The one version number of the project: it is typed in setup.cfg and read here. Standard library only."""

from configparser import ConfigParser
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def from_setup(path: Path = SETUP) -> str:
    """The version that setup.cfg names. Raises KeyError if the file is absent or names none."""
    parser = ConfigParser()
    parser.read(path, encoding="utf-8")
    return parser["metadata"]["version"]


def version(setup: Path = SETUP) -> str:
    """The version of setup.cfg; without one beside the packages, that of the installed package.

    setup.cfg comes first: the metadata of an editable install are as old as the install, and reading them imports
    sockets, which `ecom run` must not do before it patches the standard library.
    """
    try:
        return from_setup(setup)
    except KeyError:
        from importlib import metadata

        return metadata.version("ecom")


VERSION = version()
