"""The door to OpenID providers: where people are sent to sign in, and what a provider then says who they are.

Authorization code with PKCE, state and nonce. Nothing of a provider's tokens is kept. Its discovery document and its
keys are kept for an hour; for a key that is not among them they are fetched anew, at most once a minute.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import requests
import urllib3

from shared.config import Settings
from shared.edge import green
from shared.errors import CannotWork, ConfigurationFault, IdentityRefused, ValidationFailed
from shared.oidc_providers import OidcProvider, is_safe_url

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "ES256")
CALL_S = 5.0
# Calls to one provider at once. Each holds one of the 20 workers of a process; those who refresh need the others.
AT_ONCE = 6
KEEP_S, REFETCH_S = 3600.0, 60.0
SKEW_S = 60
MAX_ANSWER_BYTES = 256 * 1024
MAX_SUBJECT = 255
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")

_JWT = jwt.PyJWT(options={"enforce_minimum_key_length": True})


@dataclass(frozen=True)
class Person:
    """Who somebody is to a provider. `email` only if the provider says that it is proven."""

    subject: str
    email: str | None
    name: str | None


class Provider:
    """One provider. Every method may call it: no transaction is open then. Raises CannotWork if it does not answer."""

    def __init__(self, known: OidcProvider, clock: Callable[[], float] = time.monotonic) -> None:
        self.known = known
        self._clock = clock
        self._kept: dict[str, tuple[float, Any]] = {}  # by URL: when it was fetched, and what it said
        self._turns = green.Semaphore(AT_ONCE)

    def authorization_url(self, redirect_uri: str, state: str, nonce: str, verifier: str) -> str:
        """Where the client sends its user."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self.known.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.known.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        endpoint = self._discovered()["authorization_endpoint"]
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    def person(self, code: str, verifier: str, redirect_uri: str, nonce: str, issuer: str | None = None) -> Person:
        """Who has signed in, for the code of a callback. `issuer` is the callback's `iss`.

        Raises IdentityRefused, in the same words, for everything that does not prove it.
        """
        found = self._discovered()
        # RFC 9207: whoever mixes providers up sends the code of one to another.
        says_issuer = found.get("authorization_response_iss_parameter_supported") is True
        if issuer != self.known.issuer and (issuer is not None or says_issuer):
            raise self._refused("the callback is of another issuer")
        claims = self._claims(self._id_token(found, code, verifier, redirect_uri))
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise self._refused("the nonce is another one")
        name = claims.get("name")
        return Person(claims["sub"], _proven(claims), name if isinstance(name, str) else None)

    def _id_token(self, found: dict[str, Any], code: str, verifier: str, redirect_uri: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        credentials = self.known.client_id, self.known.client_secret
        posts = "client_secret_post" in (found.get("token_endpoint_auth_methods_supported") or ())
        if posts:
            form |= {"client_id": credentials[0], "client_secret": credentials[1]}
        basic = None if posts else tuple(quote(part, safe="") for part in credentials)  # RFC 6749, section 2.3.1
        status, answer = self._call("POST", found["token_endpoint"], data=form, auth=basic)
        if status == 400 and answer.get("error") == "invalid_grant":
            raise self._refused("the code is not valid, or no longer")
        if status != 200:
            raise CannotWork(f"{self.known.name} answers with status {status} to the code of a sign-in")
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise self._refused("there is no ID token")
        return token

    def _claims(self, token: str) -> dict[str, Any]:
        known = self.known
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in ALGORITHMS:  # never by a key that is public, and never by none
                raise self._refused("the algorithm is not one of ours")
            claims = _JWT.decode(
                token,
                self._key(kid, algorithm),
                algorithms=[algorithm],
                audience=known.client_id,
                issuer=known.issuer,
                leeway=SKEW_S,
                options={"require": ["iss", "aud", "sub", "exp", "iat"]},
            )
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise self._refused(type(error).__name__) from None
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if claims.get("azp", None if several else known.client_id) != known.client_id:
            raise self._refused("the token was issued to another client")
        if any(type(claims[moment]) is not int for moment in ("exp", "iat")):
            raise self._refused("the times are no numbers")
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= MAX_SUBJECT or "\0" in claims["sub"]:
            raise self._refused("the subject is no text")
        return claims

    def _key(self, kid: Any, algorithm: str) -> Any:
        url = self._discovered()["jwks_uri"]
        for keep_s in (KEEP_S, REFETCH_S):
            keys = self._fetch(url, keep_s).get("keys")
            fitting = [key for key in keys or () if isinstance(key, dict) and _fits(key, kid, algorithm)]
            if len(fitting) == 1:
                return jwt.PyJWK(fitting[0], algorithm)
        raise self._refused("no key of the provider has signed it")

    def _discovered(self) -> dict[str, Any]:
        url = f"{self.known.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = self._fetch(url, KEEP_S)
        if found.get("issuer") != self.known.issuer or not all(is_safe_url(found.get(name)) for name in ENDPOINTS):
            self._kept.pop(url, None)  # so that a provider that is put right works at once
            raise CannotWork(f"the discovery document of {self.known.name} is of another issuer, or is not whole")
        return found

    def _fetch(self, url: str, keep_s: float) -> dict[str, Any]:
        at, said = self._kept.get(url, (0.0, None))
        if said is not None and self._clock() - at < keep_s:
            return dict(said)
        status, said = self._call("GET", url)
        if status != 200:
            raise CannotWork(f"{self.known.name} answers with status {status}")
        self._kept[url] = self._clock(), said
        return said

    def _call(self, method: str, url: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """A request without redirects, in 5 s all together; the status and the JSON object of the answer."""
        if not self._turns.acquire(blocking=False):
            raise CannotWork(f"too many sign-ins by {self.known.name} are under way")
        try:
            return self._answer(method, url, more)
        finally:
            self._turns.release()

    def _answer(self, method: str, url: str, more: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        try:
            with (
                green.Timeout(CALL_S, False),
                requests.request(
                    method, url, headers=headers, timeout=CALL_S, stream=True, allow_redirects=False, **more
                ) as answer,
            ):
                body = answer.raw.read(MAX_ANSWER_BYTES + 1)
                said = json.loads(body) if len(body) <= MAX_ANSWER_BYTES else None
                if isinstance(said, dict):
                    return answer.status_code, said
                raise CannotWork(f"{self.known.name} answers with status {answer.status_code} and no JSON object")
        except (OSError, urllib3.exceptions.HTTPError, ValueError, RecursionError) as error:
            raise CannotWork(f"{self.known.name} gives no answer: {type(error).__name__}") from None
        raise CannotWork(f"{self.known.name} gives no answer within {CALL_S} s")

    def _refused(self, why: str) -> IdentityRefused:
        log.info("a sign-in by %s is refused: %s", self.known.name, why)
        return IdentityRefused()


class Providers:
    """The providers of the settings, by name."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationFault for a staff's provider that is none of them."""
        self._known = {known.name: Provider(known) for known in settings.oidc_providers}
        if missing := set(settings.oidc_staff_providers) - self._known.keys():
            raise ConfigurationFault(f"OIDC_PROVIDERS lacks {', '.join(sorted(missing))} of OIDC_STAFF_PROVIDERS")

    def named(self, name: str) -> Provider:
        """The provider of a name. Raises ValidationFailed."""
        if name not in self._known:
            raise ValidationFailed(details={"provider": ["There is no provider of that name."]})
        return self._known[name]


def _fits(key: dict[str, Any], kid: Any, algorithm: str) -> bool:
    """Whether a token with this kid and algorithm may be signed by a key. One without a kid fits the only key."""
    kind = {"RS256": ("RSA", None), "ES256": ("EC", "P-256")}[algorithm]
    return (
        (kid is None or key.get("kid") == kid)
        and (key.get("kty"), key.get("crv")) == kind
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
    )


def _proven(claims: dict[str, Any]) -> str | None:
    """The address that a provider calls proven. Some write "true" as a text, of which nobody can tell what it means."""
    email = claims.get("email")
    return email if claims.get("email_verified") is True and isinstance(email, str) else None
