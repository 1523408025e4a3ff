"""The door to OpenID providers, against one on this machine that misbehaves: only what is right is believed."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import eventlet
import jwt
import pytest

from auth_service import oidc
from auth_service.oidc import Person, Provider, Providers
from shared import config
from shared.errors import CannotWork, ConfigurationFault, IdentityRefused, ValidationFailed
from shared.oidc_providers import providers
from tests.oidc import CLIENT_ID, CLIENT_SECRET, REDIRECT_URI, FakeProvider, fake_provider, key_of, pem_of

ANN = {"sub": "sub-ann", "email": "Ann@Example.com", "email_verified": True, "name": "Ann"}
NONCE, STATE, VERIFIER = "a-nonce-of-ours", "a-state-of-ours", "v" * 64


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(fake: FakeProvider, clock: Clock) -> Provider:
    return provider_of(fake, clock)


def provider_of(fake: FakeProvider, clock: Callable[[], float] = time.monotonic, **changes: Any) -> Provider:
    (known,) = providers(json.dumps([fake.setting() | changes]))
    return Provider(known, clock)


def sign_in(fake: FakeProvider, provider: Provider, nonce: str = NONCE, **claims: Any) -> Person:
    url = provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    back = fake.consent(url, **(ANN | claims))
    assert back["state"] == STATE
    return provider.person(back["code"], VERIFIER, REDIRECT_URI, nonce, back.get("iss"))


@pytest.mark.parametrize("kid", ["r1", "e1"])
def test_a_provider_says_who_somebody_is(fake: FakeProvider, provider: Provider, kid: str) -> None:
    fake.sign = lambda claims: fake.signed(claims, kid)
    assert sign_in(fake, provider) == Person("sub-ann", "Ann@Example.com", "Ann")


def test_the_secret_goes_to_the_provider_as_it_wants_it(fake: FakeProvider, provider: Provider) -> None:
    fake.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"]}
    assert sign_in(fake, provider)
    fake.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_basic"]}
    assert sign_in(fake, provider_of(fake))


def _forged(**header: Any) -> Callable[[FakeProvider, dict[str, Any]], str]:
    """A token without a signature, whose header says what it likes."""

    def sign(fake: FakeProvider, claims: dict[str, Any]) -> str:
        parts = ({"typ": "JWT", **header}, claims)
        encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        return ".".join([*encoded, ""])

    return sign


def _by_public_key(fake: FakeProvider, claims: dict[str, Any]) -> str:
    """HS256 with the public key for a secret, of which PyJWT's encoder knows better."""
    head, body, _ = jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": "r1"}).split(".")
    signed = f"{head}.{body}".encode()
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = base64.urlsafe_b64encode(mac.sign(signed, pem_of("r1"))).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


SIGNED_WRONGLY: dict[str, Callable[[FakeProvider, dict[str, Any]], str]] = {
    "alg none": _forged(alg="none", kid="r1"),
    "alg None": _forged(alg="None", kid="r1"),
    "RS256 without a signature": _forged(alg="RS256", kid="r1"),
    "HS256 by the public key": _by_public_key,
    "HS256 by the client's secret": lambda fake, claims: fake.signed(claims, "r1", "HS256", CLIENT_SECRET * 2),
    "RS512": lambda fake, claims: fake.signed(claims, "r1", "RS512"),
    "PS256": lambda fake, claims: fake.signed(claims, "r1", "PS256"),
    "another key of the same kid": lambda fake, claims: fake.signed(claims, "r1", "RS256", key_of("r2")),
    "a kid that nobody publishes": lambda fake, claims: fake.signed(claims, "r9"),
    "RS256 by the kid of an ECDSA key": lambda fake, claims: fake.signed(claims, "e1", "RS256", key_of("r1")),
    "no kid, and a key of nobody": lambda fake, claims: jwt.encode(claims, key_of("r3"), "RS256"),
    "no token": lambda fake, claims: "a.b.c",
    "an empty text": lambda fake, claims: "",
}


@pytest.mark.parametrize("how", SIGNED_WRONGLY)
def test_a_token_that_is_not_signed_by_the_providers_key_is_refused(
    fake: FakeProvider, provider: Provider, how: str
) -> None:
    fake.sign = lambda claims: SIGNED_WRONGLY[how](fake, claims)
    with pytest.raises(IdentityRefused):
        sign_in(fake, provider)


NOW = int(time.time())
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "another"},
    "no nonce": {"nonce": None},
    "another audience": {"aud": "another"},
    "no audience": {"aud": None},
    "several audiences and no azp": {"aud": [CLIENT_ID, "another"]},
    "several audiences and another azp": {"aud": [CLIENT_ID, "another"], "azp": "another"},
    "another azp": {"azp": "another"},
    "another issuer": {"iss": "https://accounts.google.com"},
    "no issuer": {"iss": None},
    "expired": {"exp": NOW - 3600},
    "no expiry": {"exp": None},
    "an expiry that is text": {"exp": str(NOW + 3600)},
    "from the future": {"iat": NOW + 3600},
    "no time of issue": {"iat": None},
    "not valid yet": {"nbf": NOW + 3600},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 7},
    "a subject that is too long": {"sub": "s" * 256},
    "a subject that cannot be stored": {"sub": "a\0b"},
}


@pytest.mark.parametrize("what", WRONG_CLAIMS)
def test_a_token_that_is_not_about_this_sign_in_is_refused(fake: FakeProvider, provider: Provider, what: str) -> None:
    fake.claims = WRONG_CLAIMS[what]
    with pytest.raises(IdentityRefused) as caught:
        sign_in(fake, provider)
    assert str(caught.value) == IdentityRefused.__doc__


def test_several_audiences_are_right_if_the_token_was_issued_to_us(fake: FakeProvider, provider: Provider) -> None:
    fake.claims = {"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID}
    assert sign_in(fake, provider)
    fake.claims = {"aud": [CLIENT_ID]}
    assert sign_in(fake, provider)


@pytest.mark.parametrize("verified", [None, False, "true", 1, "false", 0, [True]])
def test_an_address_is_proven_only_by_a_true_that_is_true(
    fake: FakeProvider, provider: Provider, verified: Any
) -> None:
    assert sign_in(fake, provider, email_verified=verified).email is None


def test_a_code_works_once_and_only_with_our_verifier(fake: FakeProvider, provider: Provider) -> None:
    url = provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    for code, verifier, redirect_uri in (
        ("nonsense", VERIFIER, REDIRECT_URI),
        (fake.consent(url)["code"], "w" * 64, REDIRECT_URI),
        (fake.consent(url)["code"], VERIFIER, "https://evil.example/"),
    ):
        with pytest.raises(IdentityRefused):
            provider.person(code, verifier, redirect_uri, NONCE)


def test_a_callback_of_another_issuer_is_refused(fake: FakeProvider, provider: Provider) -> None:
    fake.discovery = {"authorization_response_iss_parameter_supported": True}
    assert sign_in(fake, provider)
    url = provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    for issuer in (None, "https://accounts.google.com", f"{fake.issuer}/"):
        with pytest.raises(IdentityRefused):
            provider.person(fake.consent(url)["code"], VERIFIER, REDIRECT_URI, NONCE, issuer)
    assert fake.asked.count("/token") == 1  # the others' codes go to nobody


def test_a_provider_that_says_no_issuer_may_say_none(fake: FakeProvider, provider: Provider) -> None:
    url = provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    with pytest.raises(IdentityRefused):
        provider.person(fake.consent(url)["code"], VERIFIER, REDIRECT_URI, NONCE, "https://evil.example")
    assert provider.person(fake.consent(url, **ANN)["code"], VERIFIER, REDIRECT_URI, NONCE, fake.issuer)


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://accounts.google.com"},
        {"issuer": None},
        {"token_endpoint": "http://192.0.2.1/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": None},
    ],
)
def test_a_discovery_document_of_somebody_else_is_refused(
    fake: FakeProvider, provider: Provider, discovery: dict[str, Any]
) -> None:
    fake.discovery = discovery
    with pytest.raises(CannotWork):
        provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    fake.discovery = {}
    assert sign_in(fake, provider)  # once it is put right


BROKEN = {
    "500": (500, b"{}"),
    "404": (404, b"{}"),
    "no JSON": (200, b"<html>"),
    "a list": (200, b"[]"),
    "nothing": (200, b""),
    "deep": (200, b"[" * 100_000),
    "huge": (200, b'{"a": "' + b"a" * (oidc.MAX_ANSWER_BYTES + 1) + b'"}'),
    "huge, and whole before the limit": (200, b"{}" + b" " * oidc.MAX_ANSWER_BYTES),
}


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_provider_that_answers_nonsense_is_away(fake: FakeProvider, provider: Provider, path: str, how: str) -> None:
    fake.answers = {path: BROKEN[how]}
    with pytest.raises(CannotWork) as caught:
        sign_in(fake, provider)
    assert CLIENT_SECRET not in str(caught.value)
    fake.answers = {}
    assert sign_in(fake, provider)


def test_a_token_answer_without_an_id_token_is_refused(fake: FakeProvider, provider: Provider) -> None:
    fake.answers = {"/token": (200, b'{"access_token": "a"}')}
    with pytest.raises(IdentityRefused):
        sign_in(fake, provider)


def test_our_own_wrong_secret_is_no_fault_of_who_signs_in(fake: FakeProvider) -> None:
    with pytest.raises(CannotWork):
        sign_in(fake, provider_of(fake, client_secret="another"))


def test_a_slow_provider_is_given_up(fake: FakeProvider, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "CALL_S", 0.2)
    fake.pause_s = 0.6
    began = time.monotonic()
    with pytest.raises(CannotWork):
        provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    assert time.monotonic() - began < 0.6


def test_a_provider_that_hangs_holds_few_calls_and_refuses_the_others_at_once(
    fake: FakeProvider, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "CALL_S", 2.0)
    fake.pause_s = 1.0

    hanging = [eventlet.spawn(provider.authorization_url, REDIRECT_URI, STATE, NONCE, VERIFIER) for _ in range(6)]
    eventlet.sleep(0)
    assert oidc.AT_ONCE == 6
    with pytest.raises(CannotWork, match="too many sign-ins"):
        provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
    assert all(one.wait() for one in hanging)
    assert provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)


def test_a_provider_that_sends_us_elsewhere_is_not_followed(fake: FakeProvider, provider: Provider) -> None:
    with fake_provider() as other:
        other.discovery = {"issuer": fake.issuer}
        fake.redirect_to = other.issuer
        with pytest.raises(CannotWork):
            provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)
        assert other.asked == []


def test_a_provider_that_is_not_there_is_away(clock: Clock) -> None:
    with fake_provider() as fake:
        provider = provider_of(fake, clock)
    with pytest.raises(CannotWork):
        provider.authorization_url(REDIRECT_URI, STATE, NONCE, VERIFIER)


def test_discovery_and_keys_are_kept_for_an_hour(fake: FakeProvider, provider: Provider, clock: Clock) -> None:
    for _ in range(3):
        sign_in(fake, provider)
    once = {"/.well-known/openid-configuration": 1, "/keys": 1, "/token": 3}
    assert {path: fake.asked.count(path) for path in set(fake.asked)} == once
    clock.now += oidc.KEEP_S
    sign_in(fake, provider)
    assert fake.asked.count("/keys") == fake.asked.count("/.well-known/openid-configuration") == 2


def test_a_new_key_is_fetched_at_most_once_a_minute(fake: FakeProvider, provider: Provider, clock: Clock) -> None:
    sign_in(fake, provider)
    fake.kids, fake.sign = ["r2"], lambda claims: fake.signed(claims, "r2")
    for _ in range(3):
        with pytest.raises(IdentityRefused):
            sign_in(fake, provider)
    assert fake.asked.count("/keys") == 1
    clock.now += oidc.REFETCH_S
    assert sign_in(fake, provider)
    fake.sign = lambda claims: fake.signed(claims, "r9")
    for _ in range(3):
        with pytest.raises(IdentityRefused):
            sign_in(fake, provider)
    assert fake.asked.count("/keys") == 2


def test_the_only_key_needs_no_kid(fake: FakeProvider, provider: Provider) -> None:
    fake.kids, fake.sign = ["r1", "e1"], lambda claims: jwt.encode(claims, key_of("r1"), "RS256")
    assert sign_in(fake, provider)


def settings_with(**environ: str) -> config.Settings:
    return config.read({"ECOM_ENV": "development", **environ})


GOOD = {"name": "google", "issuer": "https://accounts.google.com", "client_id": "c", "client_secret": "hidden-secret"}


def test_providers_are_known_by_name() -> None:
    found = Providers(settings_with(OIDC_PROVIDERS=json.dumps([GOOD, GOOD | {"name": "generic"}])))
    assert found.named("generic").known.name == "generic"
    with pytest.raises(ValidationFailed):
        found.named("nobody")


def test_a_provider_for_staff_must_be_there() -> None:
    with pytest.raises(ConfigurationFault, match="OIDC_PROVIDERS lacks other of OIDC_STAFF_PROVIDERS"):
        Providers(settings_with(OIDC_PROVIDERS=json.dumps([GOOD]), OIDC_STAFF_PROVIDERS="google,other"))


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "{}",
        "hidden-secret",
        json.dumps([GOOD, GOOD]),
        json.dumps(["hidden-secret"]),
        *(
            json.dumps([GOOD | changed])
            for changed in (
                {"name": "Google"},
                {"issuer": "http://accounts.google.com"},
                {"issuer": "https://me:hidden-secret@accounts.google.com"},
                {"issuer": "https://accounts.google.com?x=1"},
                {"client_id": ""},
                {"client_secret": 7},
                {"scopes": ["email"]},
                {"scopes": "openid"},
                {"secret": "hidden-secret"},
            )
        ),
    ],
)
def test_an_unusable_provider_is_refused_and_its_secret_is_not_shown(wrong: str) -> None:
    with pytest.raises(ConfigurationFault, match=r"^OIDC_PROVIDERS ") as caught:
        settings_with(OIDC_PROVIDERS=wrong)
    assert "hidden-secret" not in str(caught.value)
    assert "hidden-secret" not in str(caught.value.__cause__)


def test_the_secret_of_a_provider_is_not_printed() -> None:
    settings = settings_with(OIDC_PROVIDERS=json.dumps([GOOD]))
    assert "hidden-secret" not in repr(settings) + json.dumps(config.masked(settings))


@pytest.mark.parametrize(
    ("uri", "good"),
    [
        ("https://shop.example/signed-in", True),
        ("http://127.0.0.1:3000/back", True),
        ("http://localhost/back", True),
        ("com.example.shop:/back", True),
        ("http://shop.example/", False),
        ("https://shop.example/#part", False),
        ("javascript:alert(1)", False),
        ("shop:/back", False),
        ("//shop.example", False),
    ],
)
def test_an_address_to_come_back_to_is_one_that_nobody_can_listen_to(uri: str, good: bool) -> None:
    if good:
        assert settings_with(OIDC_REDIRECTS=uri).oidc_redirects == (uri,)
    else:
        with pytest.raises(ConfigurationFault, match=r"^OIDC_REDIRECTS "):
            settings_with(OIDC_REDIRECTS=uri)
