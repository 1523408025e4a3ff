"""What production refuses: `read_safe()` at the start of a process, and `ecom config --check`.

A finding is one sentence that names the setting and never shows a secret. Some findings can be allowed by a setting of
their own name, and by nothing else; a process says at its start what was allowed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import combinations
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from shared import config, parsers
from shared.config import Settings
from shared.errors import ConfigurationFault
from shared.setting import Row
from topology.services import BY_NAME
from topology.users import SHELL, broker_user

# What the secrets in this repository, tests and documentation included, consist of or contain. Whoever reads it knows
# them: a secret with one of these in it is none.
PUBLISHED = (
    config.DEVELOPMENT_KEY.partition(":")[2],
    config.DEVELOPMENT_AUDIT_KEY,
    "guest",
    "demo-",
    "a-secret-of-more-than-thirty-two-bytes",
    "a key that tests ",
    "another key that ",
    "correct horse battery",
)
MIN_LENGTH = 16  # 64 bits, if each character is one of 16
MIN_DIFFERENT_CHARACTERS = 8
# Users with all rights, by the names that servers and images give them.
ADMINISTRATORS = frozenset({"postgres", "root", "admin", "administrator", "rabbitmq"})
DOCKERS_SECRETS = "/run/secrets/"


@dataclass(frozen=True)
class Finding:
    """What is unsafe, in a sentence, and the setting that allows it; most are allowed by none."""

    sentence: str
    allowed_by: str = ""


@dataclass(frozen=True)
class Process:
    """What the rules look at: the settings that a role reads, and the environment that they were read from."""

    settings: Settings
    role: str | None
    environ: Mapping[str, str]

    @property
    def rows(self) -> list[Row]:
        """The rows that the role reads."""
        return [row for row in config.TABLE if self.role is None or self.role in row.roles]

    def secrets(self) -> Iterator[tuple[Row, str]]:
        """Each secret in each setting."""
        for row in self.rows:
            if row.secret and (value := row.of(self.settings)):
                yield from ((row, secret) for secret in row.secret.inside(value))

    def urls(self) -> Iterator[tuple[Row, SplitResult]]:
        """Each URL of a broker or database."""
        for row in self.rows:
            value = row.of(self.settings)
            if row.secret and row.parse is not parsers.mail_url and isinstance(value, str) and "://" in value:
                yield row, urlsplit(value)


def unsafe(settings: Settings, role: str | None = None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Everything that production refuses in the settings of a role, one sentence each; of all roles without one."""
    return [found.sentence for found in _findings(settings, role, environ) if not _is_allowed(found, settings)]


def allowed(settings: Settings, role: str | None = None, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What is unsafe and allowed by name, one sentence each."""
    found = _findings(settings, role, environ)
    return [f"{one.sentence}; {one.allowed_by}=1 allows it" for one in found if _is_allowed(one, settings)]


def read_safe(role: str, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of a process with this role.

    Raises ConfigurationFault for anything unusable, and in production with everything that is unsafe.
    """
    settings = config.read(environ, role)
    if settings.production and (found := unsafe(settings, role, environ)):
        raise ConfigurationFault(f"production refuses these settings: {'; '.join(found)}")
    return settings


def _findings(settings: Settings, role: str | None, environ: Mapping[str, str]) -> list[Finding]:
    process = Process(settings, role, environ)
    return [found for rule in RULES for found in rule(process)]


def _is_allowed(found: Finding, settings: Settings) -> bool:
    return bool(found.allowed_by and config.BY_VARIABLE[found.allowed_by].of(settings))


def _missing(process: Process) -> Iterator[Finding]:
    if process.role not in BY_NAME:  # a command says itself what it lacks: it may need less than its role reads
        return
    service = BY_NAME[process.role]
    needed = ["AMQP_URI", *service.needs]
    needed += [f"{service.name.upper()}_DATABASE_URL"] if service.has_database else []
    needed += [row.variable for row in process.rows if row.variable in ("PAYMENT_PROVIDER", "PAYMENT_METHODS")]
    needed += ["PAYMENT_PROVIDER_URL"] if process.settings.payment_provider == "http" else []
    for variable in needed:
        if not config.BY_VARIABLE[variable].of(process.settings):
            yield Finding(f"{variable} is not set")


def _published(process: Process) -> Iterator[Finding]:
    for row, secret in process.secrets():
        if any(known in secret for known in PUBLISHED):
            yield Finding(f"{row.variable} holds a secret that is published with this program")


def _weak(process: Process) -> Iterator[Finding]:
    for row, secret in process.secrets():
        if len(secret) < MIN_LENGTH:
            yield Finding(f"{row.variable} holds a secret of under {MIN_LENGTH} characters")
        elif len(set(secret)) < MIN_DIFFERENT_CHARACTERS:
            yield Finding(f"{row.variable} holds a secret of under {MIN_DIFFERENT_CHARACTERS} different characters")
        elif secret in (secret + secret)[1:-1]:
            yield Finding(f"{row.variable} holds a secret that repeats a part of itself")


def _used_twice(process: Process) -> Iterator[Finding]:
    users = dict(process.urls())
    known: dict[str, dict[str, str]] = defaultdict(dict)  # by secret: for whom or what it is, and the variable
    for place, (row, secret) in enumerate(process.secrets()):
        url = users.get(row)
        known[secret].setdefault(f"{url.username}@{url.hostname}" if url else f"{row.variable} {place}", row.variable)
    for variables in (list(uses.values()) for uses in known.values() if len(uses) > 1):
        one = len(set(variables)) == 1
        yield Finding(
            f"{variables[0]} holds a secret twice" if one else f"{' and '.join(variables)} hold the same secret"
        )


def _passwords(process: Process) -> Iterator[Finding]:
    for row, url in process.urls():
        # Of a database of another service only the place is needed where roles of their own read and write there.
        is_place = not url.username and row.attribute == "database_urls" and row.key != process.role
        if not url.password and not (is_place and process.settings.reader_password):
            yield Finding(f"{row.variable} has no password")


def _users(process: Process) -> Iterator[Finding]:
    for row, url in process.urls():
        user = unquote(url.username or "")
        if user == "guest":
            yield Finding(f"{row.variable} names the user guest, whom every broker knows")
        elif user in ADMINISTRATORS and "ADMIN" not in row.variable:
            yield Finding(f"{row.variable} names the user {user}, who may do everything")


def _one_broker_user(process: Process) -> Iterator[Finding]:
    """With one user for all, each service can do everything, and nobody can tell who sent a message."""
    own = broker_user(process.role or "")
    uri = process.settings.amqp_uri
    if process.role in BY_NAME and uri and process.settings.broker_user != own:
        yield Finding(f"AMQP_URI names the user {process.settings.broker_user}, not {process.role}'s own user {own}")
    if SHELL in process.settings.amqp_uris:
        yield Finding("SHELL_AMQP_URI is set: a shell may publish every event")


def _plain(process: Process) -> Iterator[Finding]:
    for row, url in process.urls():
        encrypted = url.scheme == "amqps" or "verify-full" in parse_qs(url.query).get("sslmode", ())
        if not encrypted and not parsers.is_loopback(url.hostname or ""):
            cure = "amqps://" if url.scheme == "amqp" else "sslmode=verify-full"
            yield Finding(f"{row.variable} goes to {url.hostname} without TLS ({cure})", "ALLOW_PLAIN_INSIDE")


def _plain_provider(process: Process) -> Iterator[Finding]:
    """Whoever is on the way to the provider could say that an order is paid."""
    url = urlsplit(process.settings.payment_provider_url)
    if url.scheme == "http" and not parsers.is_loopback(url.hostname or ""):
        yield Finding(f"PAYMENT_PROVIDER_URL goes to {url.hostname} without TLS (https://)")


def _mail(process: Process) -> Iterator[Finding]:
    """Whoever cannot get a mail cannot register, and cannot get back into an account."""
    settings = process.settings
    if "SMTP_URL" not in {row.variable for row in process.rows}:
        return
    if not settings.smtp_url.startswith(("smtp://", "smtps://")):
        yield Finding("SMTP_URL names no mail server: nobody gets a mail", "ALLOW_NO_MAIL")
        return
    if not urlsplit(settings.smtp_url).password:
        yield Finding("SMTP_URL has no password")
    for variable in ("MAIL_FROM", "ACCOUNT_URL"):
        if not config.BY_VARIABLE[variable].of(settings):
            yield Finding(f"{variable} is not set")
    if urlsplit(settings.account_url).scheme == "http":
        yield Finding("ACCOUNT_URL has no TLS (https://): whoever is on the way could use the links in mails")


def _one_for_several(process: Process) -> Iterator[Finding]:
    """Services that share a database, or a user of it, can do all that the others can."""
    known = [(row.variable, url) for row, url in process.urls() if row.attribute == "database_urls"]
    for (one, left), (other, right) in combinations(known, 2):
        if left.hostname != right.hostname or left.port != right.port:
            continue
        if left.path == right.path:
            yield Finding(f"{one} and {other} name the same database")
        if left.username and left.username == right.username:
            yield Finding(f"{one} and {other} name the same user")


def _files(process: Process) -> Iterator[Finding]:
    for row in process.rows:
        path = process.environ.get(f"{row.variable}_FILE")
        # Docker gives secrets the mode that they have on the host, where their folder keeps others out.
        if row.secret and path and not path.startswith(DOCKERS_SECRETS) and os.stat(path).st_mode & 0o007:
            yield Finding(f"{row.variable}_FILE: every user of this machine has a right to {path}; chmod o= {path}")


def _key_files(process: Process) -> Iterator[Finding]:
    for row in process.rows:
        path = row.of(process.settings) if row.parse is parsers.key_file else ""
        if path and os.stat(path).st_mode & 0o007:
            yield Finding(f"{row.variable}: every user of this machine has a right to {path}; chmod o= {path}")


def _limits(process: Process) -> Iterator[Finding]:
    for row in process.rows:
        if row.parse is parsers.limit and not row.of(process.settings):
            yield Finding(f"{row.variable} is 0, which means no limit")


def _origins(process: Process) -> Iterator[Finding]:
    for origin in process.settings.cors_origins:
        if not origin.startswith("https://"):
            yield Finding(f"CORS_ORIGINS lists {origin}: whoever is on the way can change a page without TLS")


def _proxies(process: Process) -> Iterator[Finding]:
    for network in process.settings.trusted_proxies:
        if ip_network(network).prefixlen == 0:
            yield Finding(f"TRUSTED_PROXIES lists {network}: everybody could choose the address that is counted")


def _mocks(process: Process) -> Iterator[Finding]:
    if process.settings.auth_mock is not False:
        yield Finding("AUTH_MOCK issues tokens to anyone")
    if process.settings.payment_provider == "mock":
        yield Finding("PAYMENT_PROVIDER is mock: orders are paid without money", "ALLOW_MOCK_PAYMENTS")


RULES: tuple[Callable[[Process], Iterable[Finding]], ...] = (
    _missing,
    _published,
    _weak,
    _used_twice,
    _passwords,
    _users,
    _one_broker_user,
    _plain,
    _plain_provider,
    _mail,
    _one_for_several,
    _files,
    _key_files,
    _limits,
    _origins,
    _proxies,
    _mocks,
)
