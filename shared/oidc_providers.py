"""OIDC_PROVIDERS: the OpenID providers by which people may sign in, as a setting. Each has a secret of its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from shared.parsers import is_loopback
from shared.setting import Secret

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_FIELDS = {"name", "issuer", "client_id", "client_secret", "scopes"}
SCOPES = ("openid", "email", "profile")


@dataclass(frozen=True)
class OidcProvider:
    """A provider. `issuer` is its name for itself, letter by letter, and where its discovery document is."""

    name: str
    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: tuple[str, ...] = SCOPES


def is_safe_url(text: Any) -> bool:
    """Whether a value is the URL of a server that nobody on the way can listen to: HTTPS, or this machine."""
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text or "@" in text:
        return False
    try:
        parts = urlsplit(text)
        there = bool(parts.hostname) and parts.port != 0 and not parts.fragment
    except ValueError:  # of a port or an IPv6 address
        return False
    return there and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")))


def providers(text: str) -> tuple[OidcProvider, ...]:
    """The providers of a JSON list. Raises ValueError, which never shows a secret."""
    if not text:
        return ()
    try:
        listed = json.loads(text)
    except ValueError:  # its words would show a part of the text
        raise ValueError("must be a JSON list of providers") from None
    if not isinstance(listed, list):
        raise ValueError("must be a JSON list of providers")
    found = tuple(_provider(place, fields) for place, fields in enumerate(listed, 1))
    if len({provider.name for provider in found}) != len(found):
        raise ValueError("names a provider twice")
    return found


def _provider(place: int, fields: Any) -> OidcProvider:
    if not isinstance(fields, dict) or not {"name", "issuer", "client_id", "client_secret"} <= fields.keys() <= _FIELDS:
        wanted = "name, issuer, client_id, client_secret and, if need be, scopes"
        raise ValueError(f"must give provider {place} {wanted}")
    name, issuer = fields["name"], fields["issuer"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"must name provider {place} by a to z, 0 to 9, _ and -")
    if not is_safe_url(issuer) or "?" in issuer:
        raise ValueError(f"must give {name} an issuer that reads https://host")
    if not all(isinstance(fields[key], str) and fields[key] for key in ("client_id", "client_secret")):
        raise ValueError(f"must give {name} a client_id and a client_secret")
    scopes = fields.get("scopes", list(SCOPES))
    if not isinstance(scopes, list) or "openid" not in scopes or not all(isinstance(scope, str) for scope in scopes):
        raise ValueError(f"must give {name} a list of scopes with openid in it")
    return OidcProvider(name, issuer, fields["client_id"], fields["client_secret"], tuple(scopes))


def redirects(text: str) -> tuple[str, ...]:
    """The addresses to which providers may send people back: HTTPS, this machine, or an app's own scheme (RFC 8252)."""
    found = tuple(piece.strip() for piece in text.split(",") if piece.strip())
    for uri in found:
        is_app = re.fullmatch(r"[a-z][a-z0-9-]*(\.[a-z0-9-]+)+:/[!-~]*", uri) and "#" not in uri
        if not is_app and not is_safe_url(uri):
            raise ValueError(f"must list https://..., http://127.0.0.1... or com.example.app:/..., not {uri!r}")
    return found


def _masked(found: tuple[OidcProvider, ...]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "issuer": one.issuer, "client_id": one.client_id, "client_secret": "***"} for one in found
    ]


IN_PROVIDERS = Secret(_masked, lambda found: tuple(provider.client_secret for provider in found))
