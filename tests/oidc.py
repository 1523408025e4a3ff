"""An OpenID provider on this machine, which misbehaves when a test wants it to.

A test plays the browser: `provider.consent(authorization_url, sub=...)` is what somebody does who signs in there, and
returns what the provider adds to the address to which it sends them back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

CLIENT_ID, CLIENT_SECRET = "shop", "a key that tests sign in by"
REDIRECT_URI = "https://shop.example/signed-in"


@cache
def key_of(kid: str) -> Any:
    """The private key of a kid: ECDSA for those that begin with e, else RSA."""
    return ec.generate_private_key(ec.SECP256R1()) if kid.startswith("e") else rsa.generate_private_key(65537, 2048)


def jwk_of(kid: str) -> dict[str, Any]:
    """The public key of a kid as a provider publishes it."""
    algorithm, kind = (ECAlgorithm, "ES256") if kid.startswith("e") else (RSAAlgorithm, "RS256")
    return {**algorithm.to_jwk(key_of(kid).public_key(), as_dict=True), "kid": kid, "use": "sig", "alg": kind}


def pem_of(kid: str) -> bytes:
    """The public key of a kid as text: what a forger signs with who hopes that it is taken for a shared secret."""
    return key_of(kid).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class FakeProvider:
    """The provider.

    What a test changes: `claims` of the next ID token (None leaves one out), how it is signed (`sign`), what discovery
    says besides (`discovery`), the keys that are published (`kids`), whole `answers` by path, where every request is
    sent on to (`redirect_to`), and a pause before each answer (`pause_s`).
    """

    def __init__(self, name: str = "google") -> None:
        self.name = name
        self.claims: dict[str, Any] = {}
        self.sign: Callable[[dict[str, Any]], str] = lambda claims: self.signed(claims)
        self.discovery: dict[str, Any] = {}
        self.kids = ["r1", "e1"]
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.pause_s = 0.0
        self.redirect_to = ""
        self.asked: list[str] = []  # the path of each request
        self._codes: dict[str, dict[str, Any]] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._serve(self, b"")

            def do_POST(self) -> None:
                provider._serve(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def setting(self) -> dict[str, Any]:
        """This provider in OIDC_PROVIDERS."""
        return {
            "name": self.name,
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
        }

    def consent(self, authorization_url: str, **claims: Any) -> dict[str, str]:
        """What somebody with these claims does who is sent here: what is added to the address to come back to."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(authorization_url).query).items()}
        assert authorization_url.startswith(f"{self.issuer}/authorize?")
        assert (asked["response_type"], asked["client_id"]) == ("code", CLIENT_ID)
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = {**asked, "claims": {"sub": "sub-ann", **claims}}
        added = {"code": code, "state": asked["state"]}
        return added | ({"iss": self.issuer} if self._says_issuer else {})

    def signed(self, claims: dict[str, Any], kid: str = "r1", algorithm: str | None = None, key: Any = None) -> str:
        """An ID token by the key of a kid."""
        algorithm = algorithm or ("ES256" if kid.startswith("e") else "RS256")
        return jwt.encode(claims, key or key_of(kid), algorithm=algorithm, headers={"kid": kid})

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def _says_issuer(self) -> bool:
        return bool(self.discovery.get("authorization_response_iss_parameter_supported"))

    def _serve(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        path = urlsplit(request.path).path
        self.asked.append(path)
        time.sleep(self.pause_s)
        if self.redirect_to:
            request.send_response(307)
            request.send_header("Location", self.redirect_to + path)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        status, content = self.answers.get(path) or self._answer(path, request, body)
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        with suppress(OSError):  # the client has had enough
            request.wfile.write(content)

    def _answer(self, path: str, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        if path == "/.well-known/openid-configuration":
            found = {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            }
            return 200, json.dumps(found | self.discovery).encode()
        if path == "/keys":
            return 200, json.dumps({"keys": [jwk_of(kid) for kid in self.kids]}).encode()
        if path == "/token":
            return self._token(request, dict(parse_qsl(body.decode())))
        return 404, b"{}"

    def _token(self, request: BaseHTTPRequestHandler, form: dict[str, str]) -> tuple[int, bytes]:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            user, _, password = base64.b64decode(given).decode().partition(":")
            credentials = unquote(user), unquote(password)
        else:
            credentials = form.get("client_id", ""), form.get("client_secret", "")
        if credentials != (CLIENT_ID, CLIENT_SECRET):
            return 401, b'{"error": "invalid_client"}'
        asked = self._codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if (
            asked is None
            or form["redirect_uri"] != asked["redirect_uri"]
            or challenge.decode() != asked["code_challenge"]
            or form["grant_type"] != "authorization_code"
        ):
            return 400, b'{"error": "invalid_grant"}'
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **asked["claims"],
            **self.claims,
        }
        token = self.sign({name: value for name, value in claims.items() if value is not None})
        return 200, json.dumps({"id_token": token, "access_token": "at", "token_type": "Bearer"}).encode()


@contextmanager
def fake_provider(name: str = "google") -> Iterator[FakeProvider]:
    """A provider that runs."""
    provider = FakeProvider(name)
    try:
        yield provider
    finally:
        provider.close()
