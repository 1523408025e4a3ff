"""One setting as a row of the table in shared/config.py, and the kinds of secrets that a setting can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, NamedTuple

from shared import parsers
from shared.errors import ConfigurationFault


class Secret(NamedTuple):
    """A kind of secret: how its value is shown, and the secrets that the value holds."""

    masked: Callable[[Any], Any]
    inside: Callable[[Any], tuple[str, ...]]


class Row(NamedTuple):
    """How one variable of the environment becomes a value of Settings, and which roles read it."""

    variable: str
    parse: Callable[[str], Any]
    means: str
    roles: tuple[str, ...]
    default: str = ""
    production: str | None = None  # the default in production, where it differs
    secret: Secret | None = None
    attribute: str = ""
    key: str = ""  # where the attribute is a mapping

    def default_in(self, env: str) -> str:
        """The text that counts where the variable is not set."""
        return self.default if self.production is None or env != "production" else self.production

    def value_in(self, environ: Mapping[str, str], env: str) -> Any:
        """Its value in an environment of the process. Raises ConfigurationFault, which names the variable."""
        text = self._text_in(environ)
        try:
            return self.parse(self.default_in(env) if text is None else text)
        except ValueError as error:
            raise ConfigurationFault(f"{self.variable} {error}") from error

    def _text_in(self, environ: Mapping[str, str]) -> str | None:
        path = environ.get(f"{self.variable}_FILE")
        if not path:
            return environ.get(self.variable)
        if self.variable in environ:
            raise ConfigurationFault(f"set {self.variable} or {self.variable}_FILE, not both")
        try:
            with open(path, encoding="utf-8") as file:
                return file.read().strip()
        except OSError as error:
            raise ConfigurationFault(f"{self.variable}_FILE: {error}") from error

    def of(self, settings: Any) -> Any:
        """Its value; None if it is one of a mapping and is not set."""
        value = getattr(settings, self.attribute)
        return value.get(self.key) if self.key else value


def one(row: Row) -> Any:
    """An attribute with one row."""
    return field(default=row.parse(row.default), metadata={"rows": {"": row}})


def each(rows: Mapping[str, Row]) -> Any:
    """An attribute that is a mapping, with a row for each key. It lacks a key whose value is empty."""
    values = {key: row.parse(row.default) for key, row in rows.items() if row.default}
    return field(default_factory=lambda: dict(values), metadata={"rows": rows})


# The kinds of secrets: a password in a URL, a word, keys, and keys with names.
IN_URL = Secret(parsers.masked_url, parsers.passwords_in)
WORD = Secret(lambda word: "***" if word else "", lambda word: (word,) if word else ())
KEYS = Secret(lambda keys: ["***" for _ in keys], tuple)
NAMED_KEYS = Secret(lambda keys: [f"{kid}:***" for kid, _ in keys], lambda keys: tuple(key for _, key in keys))
