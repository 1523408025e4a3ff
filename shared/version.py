"""The one version number of the project: it is typed in setup.cfg and read here. Standard library only."""

from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def from_setup(path: Path = SETUP) -> str:
    """The version that setup.cfg names. Raises KeyError if the file is absent or names none."""
    parser = ConfigParser()
    parser.read(path, encoding="utf-8")
    return parser["metadata"]["version"]


def version() -> str:
    """The version of the installed package; that of setup.cfg if the package is not installed."""
    try:
        return metadata.version("ecom")
    except metadata.PackageNotFoundError:
        return from_setup()


VERSION = version()
