"""Tokens and sign-in: one answer for every fault."""

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace

import jwt
import pytest

from auth_service import domain, passwords
from auth_service.domain import Account
from shared import auth
from shared.errors import Forbidden, Unauthenticated
from shared.events import Identity

OLD = ("k1", "the-old-secret-is-long-enough-for-hs256")
NEW = ("k2", "the-new-secret-is-long-enough-for-hs256")
NOW = 1_800_000_000
CLAIMS = {
    "iss": "ecom",
    "aud": "ecom-api",
    "sub": "alice",
    "roles": ["customer"],
    "iat": NOW,
    "exp": NOW + 900,
    "jti": "some-id",
}


def part(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(claims, header=None, secret=OLD[1]):
    """A token signed by hand, so that it can say what no library would."""
    text = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'} if header is None else header)}.{part(claims)}"
    return f"{text}.{part(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())}"


def without(name):
    return {key: value for key, value in CLAIMS.items() if key != name}


def test_a_token_says_who_it_was_issued_to_and_for_how_long():
    claims = auth.verify(auth.issue((OLD,), "alice", ("customer", "admin"), now=NOW), (OLD,), now=NOW)
    assert claims.identity == Identity("alice", ("customer", "admin"))
    assert (claims.issued_at, claims.expires_at) == (NOW, NOW + 900)
    assert claims.token_id


def test_two_tokens_are_never_the_same():
    assert auth.issue((OLD,), "alice", (), now=NOW) != auth.issue((OLD,), "alice", (), now=NOW)


def test_a_token_is_valid_by_the_clock_of_the_process():
    assert auth.verify(auth.issue((OLD,), "alice", ()), (OLD,)).expires_at > time.time()


def test_a_token_made_by_hand_with_the_right_claims_is_taken():
    assert auth.verify(signed(CLAIMS), (OLD,), now=NOW).identity == Identity("alice", ("customer",))


def test_a_rotated_key_still_verifies_and_the_first_signs():
    before = auth.issue((OLD,), "alice", (), now=NOW)
    after = auth.issue((NEW, OLD), "alice", (), now=NOW)
    assert jwt.get_unverified_header(after)["kid"] == "k2"
    assert auth.verify(before, (NEW, OLD), now=NOW)
    assert auth.verify(after, (NEW, OLD), now=NOW)
    with pytest.raises(Unauthenticated):
        auth.verify(before, (NEW,), now=NOW)


@pytest.mark.parametrize(
    ("token", "now"),
    [
        ("", NOW),
        ("a.b.c", NOW),
        ("....", NOW),
        ("\N{SNOWMAN}.b.c", NOW),
        (signed(CLAIMS)[:-2], NOW),
        (signed(CLAIMS, secret=NEW[1]), NOW),
        (signed(CLAIMS, {"alg": "none", "kid": "k1"}), NOW),
        (signed(CLAIMS, {"alg": "HS512", "kid": "k1"}), NOW),
        (jwt.encode(CLAIMS, OLD[1] * 2, algorithm="HS512", headers={"kid": "long"}), NOW),
        (signed(CLAIMS, {"alg": "HS256"}), NOW),
        (signed(CLAIMS, {"alg": "HS256", "kid": "K1"}), NOW),
        (signed(CLAIMS, {"alg": "HS256", "kid": ["k1"]}), NOW),
        (signed(CLAIMS, {"alg": "HS256", "kid": "k1", "crit": ["exp"]}), NOW),
        (f"{part(b'[' * 2000)}.{part(CLAIMS)}.x", NOW),
        (signed(["no", "object"]), NOW),
        *((signed(without(name)), NOW) for name in CLAIMS),
        (signed(CLAIMS | {"iss": "another"}), NOW),
        (signed(CLAIMS | {"aud": "another"}), NOW),
        (signed(CLAIMS | {"aud": ["ecom-api"]}), NOW),
        (signed(CLAIMS | {"exp": str(NOW + 900)}), NOW),
        (signed(CLAIMS | {"exp": NOW + 900.5}), NOW),
        (signed(CLAIMS | {"iat": True, "exp": 900}), 1),
        (signed(CLAIMS | {"iat": NOW, "exp": NOW + 3601}), NOW),
        (signed(CLAIMS | {"iat": NOW + 900}), NOW),
        (signed(CLAIMS | {"nbf": NOW + 10**9}), NOW),
        (signed(CLAIMS), NOW + 900),
        (signed(CLAIMS), NOW - 11),
        (signed(CLAIMS | {"sub": ""}), NOW),
        (signed(CLAIMS | {"sub": 7}), NOW),
        (signed(CLAIMS | {"sub": "a\0b"}), NOW),
        (signed(CLAIMS | {"sub": "a\ud800b"}), NOW),
        (signed(CLAIMS | {"sub": "a" * 201}), NOW),
        (signed(CLAIMS | {"roles": "customer"}), NOW),
        (signed(CLAIMS | {"roles": ["customer", 7]}), NOW),
        (signed(CLAIMS | {"jti": 7}), NOW),
        (signed(CLAIMS | {"more": "x" * 4096}), NOW),
    ],
)
def test_every_fault_of_a_token_has_the_same_answer(token, now):
    with pytest.raises(Unauthenticated) as caught:
        auth.verify(token, (OLD, ("long", OLD[1] * 2)), now=now)
    assert caught.value.message == "The bearer token is not valid, or no longer."
    assert caught.value.details == {}


def test_a_token_that_was_valid_is_refused_when_it_has_expired_or_its_key_is_gone():
    token = auth.issue((OLD,), "alice", (), now=NOW)
    assert auth.verify(token, (OLD,), now=NOW + 899)
    for keys, now in (((OLD,), NOW + 900), ((NEW,), NOW), ((("k1", NEW[1]),), NOW)):
        with pytest.raises(Unauthenticated):
            auth.verify(token, keys, now=now)


def test_a_token_for_the_dashboard_opens_nothing_of_the_api_nor_the_other_way_round():
    audiences = (auth.AUDIENCE, auth.DASHBOARD)
    for issued_for in audiences:
        token = auth.issue((OLD,), "alice", ("auditor",), now=NOW, audience=issued_for)
        for asked_by in audiences:
            for _ in range(2):  # the second time from memory
                if asked_by == issued_for:
                    assert auth.verify(token, (OLD,), now=NOW, audience=asked_by).identity.user_id == "alice"
                else:
                    with pytest.raises(Unauthenticated):
                        auth.verify(token, (OLD,), now=NOW, audience=asked_by)


def test_a_secret_that_is_too_short_signs_nothing():
    with pytest.raises(jwt.InvalidKeyError):
        auth.issue((("k1", "short"),), "alice", ())


def test_the_clocks_of_two_hosts_may_differ_a_little():
    assert auth.verify(signed(CLAIMS), (OLD,), now=NOW - 9)


ALICE = Account("alice", "alice", password_hash="a hash", roles=("customer",))


def test_the_right_password_signs_in():
    assert domain.sign_in(ALICE, password_fits=True) is ALICE
    assert ALICE.identity == Identity("alice", ("customer",))


@pytest.mark.parametrize(
    ("account", "fits"),
    [
        (None, False),
        (ALICE, False),
        (replace(ALICE, disabled=True), True),
        (replace(ALICE, kind=domain.Kind.SERVICE), True),
    ],
)
def test_an_unknown_name_a_wrong_password_a_disabled_user_and_a_service_get_the_same_error(account, fits):
    with pytest.raises(Unauthenticated, match=r"^The name or the password is wrong\.$"):
        domain.sign_in(account, fits)


def test_mock_tokens_are_for_whom_they_name_where_they_are_issued():
    assert domain.sign_in_as("u1", ("admin",), mock=True) == Identity("u1", ("admin",))
    with pytest.raises(Forbidden):
        domain.sign_in_as("u1", ("admin",), mock=False)


def test_the_development_users_have_the_roles_of_their_names():
    assert tuple(domain.DEVELOPMENT_PASSWORDS) == auth.ROLES
    assert domain.DEVELOPMENT_PASSWORDS["auditor"] == "demo-auditor"


def test_a_password_fits_its_own_hash_alone():
    hashed = passwords.hash_of("open sesame")
    assert hashed.startswith("$argon2id$")
    assert passwords.fits(hashed, "open sesame")
    assert not passwords.fits(hashed, "open sesam")
    assert not passwords.fits("no hash at all", "open sesame")
    assert passwords.hash_of("open sesame") != hashed


def test_an_unknown_name_costs_as_much_as_a_known_one(monkeypatch):
    verified = []
    verify = passwords._verify
    monkeypatch.setattr(passwords, "_verify", lambda *given: verified.append(given) or verify(*given))
    assert not passwords.fits(None, "nobody has this password")
    assert len(verified) == 1
