"""Accounts: registering, signing in, passwords, addresses, and the end of an account.

No route here takes an Idempotency-Key: its answer would be stored, and answers hold secrets.
"""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields

from gateway.account_export import OwnExport, export_account
from gateway.api.enumerations import ROLE
from gateway.api.fields import (
    EXAMPLE_ID,
    MAX_EMAIL,
    AnswerSchema,
    RequestSchema,
    Text,
    Word,
    datetime_field,
    field_metadata,
    text_field,
)
from gateway.api.http import SIGNED_IN, Call, api, prove, prove_by_password, sign_in
from gateway.origins import origin_of
from gateway.signed_in import SignedIn
from gateway.tokens import MAX_PASSWORD, MAX_TOKEN
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import (
    Forbidden,
    LastAdmin,
    NotFound,
    PasswordRefused,
    SignInPaused,
    TokenInvalid,
    Unauthenticated,
    ValidationFailed,
    WrongPassword,
)

# What a caller hears whose user is not stored, or is a service.
OWN = (NotFound, Forbidden)

MAX_DISPLAY_NAME = 100
LOCALE = re.compile(r"[a-z]{2}(-[A-Z]{2})?")
PHRASE = "an agreeable summer"
MAIL_TOKEN = "AaH8-AUVeRKROXFUV0RzpQ"


def _email() -> Text:
    return Text("alice@example.org", at_most=MAX_EMAIL, required=True)


def _name(**more: Any) -> Text:
    return Text("Alice", "what to call you", at_most=MAX_DISPLAY_NAME, **more)


def _locale(**more: Any) -> Text:
    return Text("en", "the language of mails", at_most=5, pattern=LOCALE, **more)


def _password(description: str = "", **more: Any) -> Text:
    return Text(PHRASE, description, at_most=MAX_PASSWORD, load_only=True, **more)


def _new_password() -> Text:
    return _password("12 to 1,024 characters, and none that is easily guessed", required=True)


def _mail_token() -> Text:
    return Text(MAIL_TOKEN, "from the link in the mail", at_most=MAX_TOKEN, required=True, load_only=True)


class Registration(RequestSchema):
    """Who wants to become a user."""

    email = _email()
    name = _name(load_default=None)
    locale = _locale(load_default="en")


class EmailProof(RequestSchema):
    """The token from a mail to a new user, or to a new address."""

    token = _mail_token()
    password = _password("the new user's, or for a new address that of the account", required=True)
    name = _name(load_default=None)


class LoginRequest(RequestSchema):
    """A name or an address, and its password."""

    login = Text("alice@example.org", "an e-mail address, or a name", at_most=MAX_EMAIL, required=True)
    password = _password(required=True)
    device_token = Text(
        "AaH8-AUVeRKROXFUV0RzpQ",
        "from the last sign-in on this device: then nobody who guesses can pause it",
        at_most=MAX_TOKEN,
        load_default=None,
    )


class PasswordChange(RequestSchema):
    """The password of now, and the next."""

    current_password = _password(required=True)
    new_password = _new_password()


class ResetRequest(RequestSchema):
    """The address of an account."""

    email = _email()


class ResetConfirmation(RequestSchema):
    """The token from the mail, and the new password."""

    token = _mail_token()
    password = _new_password()


class AccountChange(RequestSchema):
    """What to change of an account: one field at least."""

    name = _name(allow_none=True)
    locale = _locale()


class EmailChange(RequestSchema):
    """A new address, and the password of the account."""

    email = _email()
    password = _password(required=True)


class Erasure(RequestSchema):
    """The password of the account; null if you have signed in within the last 10 minutes."""

    password = _password(load_default=None, allow_none=True)


class Keeping(RequestSchema):
    """The token from the mail."""

    token = _mail_token()


class Empty(AnswerSchema):
    """An empty object, whoever exists."""


class Account(AnswerSchema):
    """Your account."""

    id = text_field(EXAMPLE_ID, "your id, which never changes")
    email = text_field("alice@example.org", "null for who has none", allow_none=True)
    name = text_field("Alice", "what you call yourself", allow_none=True)
    roles = fields.List(Word(ROLE, metadata=field_metadata("customer")), required=True)
    locale = text_field("en", "the language of mails")
    has_password = fields.Boolean(
        required=True, metadata=field_metadata(True, "false for who signs in by another provider alone")
    )
    created_at = datetime_field()


class Erasing(AnswerSchema):
    """When the account will be emptied."""

    erase_after = datetime_field("until then the mail about it holds the way back")


class Accounts:
    """Routes under /api/auth about accounts."""

    auth = RpcProxy("auth_service")

    @prove(
        "POST",
        "/api/auth/register",
        roles=None,
        body=Registration,
        answer=Empty,
        status=202,
        summary="Register",
    )
    def register(self, call: Call) -> dict[str, Any]:
        """Sends a mail to the address, whether it has an account or not. The link in it is good for 24 hours, once.

        At most 3 mails an hour go to one address, and 10 are asked for from one network; who asks for more is not told.
        """
        body = call.body
        return self.auth.register(body["email"], body["name"], body["locale"], origin_of(call))

    @prove_by_password(
        "POST",
        "/api/auth/verify-email",
        roles=None,
        body=EmailProof,
        answer=SignedIn,
        status=201,
        fails=(TokenInvalid, PasswordRefused, WrongPassword, SignInPaused),
        summary="Prove an address",
    )
    def verify_email(self, call: Call) -> dict[str, Any]:
        """Makes the account of a new user, with this password, or gives an account its new address; signs in.

        A refused password does not use the token. For a new address the password of the account is asked for, because
        an address that was mistyped is somebody else's.
        """
        body = call.body
        return self.auth.verify_email(body["token"], body["password"], body["name"], origin_of(call))

    @sign_in(
        "POST",
        "/api/auth/login",
        roles=None,
        body=LoginRequest,
        answer=SignedIn,
        fails=(Unauthenticated, SignInPaused),
        summary="Sign in",
    )
    def login(self, call: Call) -> dict[str, Any]:
        """An access token, a refresh token, and a device token to keep on this device and to send the next time.

        After many failures 429 `sign_in_paused` says when to try again. A device with its token is not paused by
        anybody else, and the mail that resets a password signs in, too.
        """
        body = call.body
        return self.auth.login(body["login"], body["password"], body["device_token"], origin_of(call))

    @sign_in(
        "POST",
        "/api/auth/password",
        roles=SIGNED_IN,
        body=PasswordChange,
        answer=SignedIn,
        fails=(*OWN, WrongPassword, PasswordRefused, SignInPaused),
        summary="Change your password",
    )
    def change_password(self, call: Call) -> dict[str, Any]:
        """Ends all your other sessions and makes all device tokens of before worthless. Go on with the new tokens."""
        return self.auth.change_password(call.body["current_password"], call.body["new_password"], origin_of(call))

    @prove(
        "POST",
        "/api/auth/password/reset",
        roles=None,
        body=ResetRequest,
        answer=Empty,
        status=202,
        summary="Ask for a new password",
    )
    def request_password_reset(self, call: Call) -> dict[str, Any]:
        """Sends a mail to the address, whether it has an account or not. Its link is good for 30 minutes, once."""
        return self.auth.request_password_reset(call.body["email"], origin_of(call))

    @prove_by_password(
        "POST",
        "/api/auth/password/reset/confirm",
        roles=None,
        body=ResetConfirmation,
        answer=SignedIn,
        fails=(TokenInvalid, PasswordRefused),
        summary="Set a new password",
    )
    def confirm_password_reset(self, call: Call) -> dict[str, Any]:
        """Sets the password, ends all sessions, and signs in, also while sign-ins are paused.

        A refused password does not use the token.
        """
        return self.auth.confirm_password_reset(call.body["token"], call.body["password"], origin_of(call))

    @api("GET", "/api/auth/me", roles=SIGNED_IN, answer=Account, fails=OWN, summary="Read your account")
    def me(self, call: Call) -> dict[str, Any]:
        """Your account. 404 for a token whose user is not stored, as development mode issues them."""
        return self.auth.me()

    @api(
        "PATCH",
        "/api/auth/me",
        roles=SIGNED_IN,
        body=AccountChange,
        answer=Account,
        fails=OWN,
        summary="Change your account",
    )
    def update_me(self, call: Call) -> dict[str, Any]:
        """Changes the fields that the body has, and no other."""
        if not call.body:
            raise ValidationFailed("The body must hold name or locale.")
        return self.auth.update_me(call.body, origin_of(call))

    @sign_in(
        "POST",
        "/api/auth/me/email",
        roles=SIGNED_IN,
        body=EmailChange,
        answer=Empty,
        status=202,
        fails=(*OWN, WrongPassword, SignInPaused),
        summary="Change your address",
    )
    def change_email(self, call: Call) -> dict[str, Any]:
        """Sends a link to the new address, which is yours once it is used with your password, and tells the old one."""
        return self.auth.change_email(call.body["email"], call.body["password"], origin_of(call))

    @export_account(
        "GET",
        "/api/auth/me/export",
        roles=SIGNED_IN,
        answer=OwnExport,
        fails=OWN,
        summary="Take your data away",
    )
    def export_me(self, call: Call) -> dict[str, Any]:
        """All that is stored about you but secrets: account, sessions, identities, records, orders with their payments.

        It is sent piece by piece. Whoever gets JSON that ends early must ask again.
        """
        return self.auth.me()

    @sign_in(
        "POST",
        "/api/auth/me/erase",
        roles=SIGNED_IN,
        body=Erasure,
        answer=Erasing,
        status=202,
        fails=(*OWN, WrongPassword, SignInPaused, LastAdmin),
        summary="End your account",
    )
    def erase_me(self, call: Call) -> dict[str, Any]:
        """Ends all sessions at once, and empties the account in 14 days. Until then the mail holds the way back.

        Orders and payments stay, under an id that says nothing about you.
        """
        return self.auth.erase_me(call.body["password"], origin_of(call))

    @prove(
        "POST",
        "/api/auth/keep",
        roles=None,
        body=Keeping,
        answer="The account is kept.",
        status=204,
        fails=(TokenInvalid,),
        summary="Keep your account",
    )
    def keep_account(self, call: Call) -> None:
        """Takes back that the account is erased. Sign in as before."""
        self.auth.keep_account(call.body["token"], origin_of(call))
