"""Signing in by a provider, and the identities that a user has linked.

No route here takes an Idempotency-Key: its answer would be stored, and answers hold secrets.
"""

from __future__ import annotations

import re
from typing import Any

from marshmallow import fields

from gateway.api.answering import Answer
from gateway.api.fields import AnswerSchema, Flag, Id, RequestSchema, Text, datetime_field, list_field, text_field
from gateway.api.http import SIGNED_IN, Call, Proving, api, prove
from gateway.origins import origin_of
from gateway.signed_in import SignedIn
from gateway.tokens import MAX_TOKEN
from shared import auth
from shared.edge.http import Environ
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import (
    BadRequest,
    Conflict,
    EmailUnproven,
    Forbidden,
    IdentityRefused,
    IdentityTaken,
    LinkRequired,
    NotFound,
    SignInAgain,
    TokenInvalid,
    Unauthenticated,
    ValidationFailed,
)

PROVIDER = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_URL, MAX_CODE, MAX_STATE = 2000, 4096, 200


def _provider(**more: Any) -> Text:
    return Text("google", "the name of a provider", at_most=32, pattern=PROVIDER, **more)


class OAuthStart(RequestSchema):
    """Where to sign in, and where to come back to."""

    provider = _provider(required=True)
    redirect_uri = Text(
        "https://shop.example/signed-in",
        "one of those that are listed, letter by letter",
        at_most=MAX_URL,
        required=True,
    )
    link = Flag(
        "link the identity to your account, in place of signing in; only within 10 minutes after you have signed in",
        False,
        load_default=False,
    )


class OAuthStarted(AnswerSchema):
    """Where to send the user, and what to keep meanwhile."""

    authorization_url = text_field("https://accounts.example/authorize?response_type=code", "the provider's page")
    attempt = fields.UUID(
        required=True,
        metadata={
            "description": "keep it in the tab, in no URL: without it nobody is signed in to somebody else's account",
            "examples": ["7f3a2b54-63cf-4f0d-9a86-3cde0d2a8c1f"],
        },
    )


class OAuthCallback(RequestSchema):
    """What the provider has added to `redirect_uri`, and what the client has kept."""

    provider = _provider(required=True)
    code = Text("4/0AX4XfWh", at_most=MAX_CODE, required=True, load_only=True)
    state = Text("af0ifjsldkj", at_most=MAX_STATE, required=True, load_only=True)
    attempt = Id("what the start has answered", required=True)
    iss = Text("https://accounts.example", "if the provider has added it", at_most=MAX_URL, load_default=None)


class LinkToken(RequestSchema):
    """The token from the mail."""

    token = Text(
        "AaH8-AUVeRKROXFUV0RzpQ", "from the link in the mail", at_most=MAX_TOKEN, required=True, load_only=True
    )


class LinkedIdentity(AnswerSchema):
    """A provider by which you may sign in."""

    provider = text_field("google")
    linked_at = datetime_field()


class LinkedIdentities(AnswerSchema):
    """The providers by which you may sign in, by name."""

    items = list_field(LinkedIdentity)


class PerhapsSignedIn(Proving):
    """A route that anybody may call, and that does more for who is signed in."""

    def _claims(self, environ: Environ) -> auth.Claims | None:
        if "HTTP_AUTHORIZATION" not in environ:
            return None
        claims = self.verify(environ)
        self.rates.made.check_user(claims.identity)
        return claims


class OpenId:
    """Routes under /api/auth about providers."""

    auth = RpcProxy("auth_service")

    @PerhapsSignedIn.decorator(
        "POST",
        "/api/auth/oauth/start",
        roles=None,
        body=OAuthStart,
        answer=OAuthStarted,
        fails=(ValidationFailed, Unauthenticated, SignInAgain),
        summary="Begin to sign in by a provider",
    )
    def start_oauth(self, call: Call) -> dict[str, Any]:
        """Send the user to `authorization_url`; the provider sends them back to `redirect_uri` with code and state.

        It takes 10 minutes at most. With `link` the request needs a token, and the identity will be linked to its user.
        """
        body = call.body
        if body["link"] and call.identity is None:
            raise Unauthenticated
        return self.auth.start_oauth(body["provider"], body["redirect_uri"], body["link"], origin_of(call))

    @prove(
        "POST",
        "/api/auth/oauth/callback",
        roles=None,
        body=OAuthCallback,
        answer=SignedIn,
        also={204: "The identity is linked to the account that has begun."},
        fails=(
            *(BadRequest, IdentityRefused, Forbidden, IdentityTaken, LinkRequired, EmailUnproven),
            *(ValidationFailed,),
        ),
        summary="Sign in by a provider",
    )
    def finish_oauth(self, call: Call) -> Any:
        """An identity that is known signs in. One that is not makes a new user, if its address is proven and free.

        If somebody has the address, they get a mail (link_required): its link links the identity and signs in. Without
        a proven address (email_unproven) register by mail, and link the identity then. Users with other roles than
        customer sign in only by providers that are meant for them: 403. `attempt` works once: 400 for another one.
        """
        body = call.body
        signed_in = self.auth.finish_oauth(
            body["provider"], body["code"], body["state"], str(body["attempt"]), body["iss"], origin_of(call)
        )
        return Answer(None, 204) if signed_in is None else signed_in

    @prove(
        "POST",
        "/api/auth/link",
        roles=None,
        body=LinkToken,
        answer=SignedIn,
        fails=(TokenInvalid, Forbidden, IdentityTaken),
        summary="Link an identity by mail",
    )
    def link_identity(self, call: Call) -> dict[str, Any]:
        """Links the identity that the mail is about to the account with its address, and signs in. Works once."""
        return self.auth.link_identity(call.body["token"], origin_of(call))

    @api(
        "GET",
        "/api/auth/identities",
        roles=SIGNED_IN,
        answer=LinkedIdentities,
        summary="List the providers by which you may sign in",
    )
    def identities(self, call: Call) -> dict[str, Any]:
        """Each provider once."""
        return self.auth.identities()

    @api(
        "DELETE",
        "/api/auth/identities/<provider>",
        in_path={"provider": _provider()},
        roles=SIGNED_IN,
        answer="This identity signs in no more.",
        status=204,
        fails=(NotFound, Conflict),
        summary="Unlink a provider",
    )
    def unlink_identity(self, call: Call, provider: str) -> None:
        """409 if it is the only way in: set a password first, by the mail that resets one. Sessions go on."""
        if not PROVIDER.fullmatch(provider):
            raise NotFound
        self.auth.unlink_identity(provider, origin_of(call))
