"""Tokens: issue and introspect them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from marshmallow import fields, validate
from werkzeug.wrappers import Request

from gateway.api.fields import (
    EXAMPLE_ID,
    MAX_EMAIL,
    OTHER_ID,
    AnswerSchema,
    OneOfApart,
    RequestSchema,
    Text,
    field_metadata,
    integer_field,
    text_field,
)
from gateway.api.forms import FormOrJson, FormSchema, is_form
from gateway.api.http import Api, Call, SigningIn, api
from gateway.origins import origin_of
from gateway.roles import roles_field
from shared.auth import ADMIN, MAX_NAME_LENGTH, SERVICE
from shared.edge.http import Environ
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import (
    BadRequest,
    Forbidden,
    InvalidClient,
    InvalidGrant,
    Unauthenticated,
    UnsupportedGrantType,
    ValidationFailed,
)

MAX_PASSWORD = 1024
MAX_TOKEN = 8192


class PasswordLogin(RequestSchema):
    """A user's name and password."""

    username = Text("customer", "a name, or an e-mail address", at_most=MAX_EMAIL, required=True)
    password = Text("demo-customer", at_most=MAX_PASSWORD, required=True, load_only=True)


class MockLogin(RequestSchema):
    """Mock mode, in development only: a token for any user and roles."""

    user_id = Text("alice", "the user of the token", at_most=MAX_NAME_LENGTH, required=True)
    roles = roles_field(required=True)


class TokenRequest(OneOfApart):
    """A name and its password or, in mock mode, any user and roles."""

    shapes = (PasswordLogin, MockLogin)


class Grant(FormSchema):
    """A form of OAuth 2.0. The key of a service may also come as HTTP Basic authentication."""

    grant_type = Text("client_credentials", "client_credentials, or refresh_token", required=True)
    client_id = Text("till", "for client_credentials: the name of a service", at_most=MAX_NAME_LENGTH)
    client_secret = Text("ek_01a1fcf80515791291397154577473a5_bm90IGEga2V5", "its key", at_most=MAX_TOKEN)
    refresh_token = Text("ert_AaH8-AUVeRKROXFUV0RzpQAAAAE", "for refresh_token", at_most=MAX_TOKEN)


class IntrospectionRequest(RequestSchema):
    """A token to introspect."""

    token = Text("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl", at_most=MAX_TOKEN, required=True)


class Token(AnswerSchema):
    """A bearer token."""

    access_token = text_field("eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl")
    token_type = text_field("Bearer", validate=validate.Equal("Bearer"))
    expires_in = integer_field(900, "in seconds")


class TokenAnswer(Token):
    """A bearer token, and for the grant refresh_token the next refresh token."""

    refresh_token = fields.String(metadata=field_metadata("ert_AaH8-AUVeRKROXFUV0RzpQAAAAE"))


class Introspection(AnswerSchema):
    """The answer of RFC 7662. A token that is not valid, or was revoked, has `active: false` and nothing else."""

    active = fields.Boolean(required=True, metadata=field_metadata(True))
    token_type = fields.String(metadata=field_metadata("Bearer"))
    sub = fields.String(metadata=field_metadata("alice", "the user's id"))
    username = fields.String(metadata=field_metadata("alice"))
    roles = fields.List(fields.String(metadata=field_metadata("customer")))
    scope = fields.String(metadata=field_metadata("customer", "the roles, separated by spaces"))
    iss = fields.String(metadata=field_metadata("ecom"))
    aud = fields.String(metadata=field_metadata("ecom-api"))
    iat = fields.Integer(metadata=field_metadata(1768386600))
    exp = fields.Integer(metadata=field_metadata(1768387500))
    jti = fields.String(metadata=field_metadata(OTHER_ID))
    sid = fields.String(metadata=field_metadata(EXAMPLE_ID, "the session that the token belongs to, if any"))
    ver = fields.Integer(metadata=field_metadata(1, "the version of its user: tokens of an older one are revoked"))


class TokenRoute(FormOrJson, SigningIn):
    """The token endpoint. Only a JSON body may have a password to check: a form waits for none of those."""

    def prepare(self, request: Request) -> tuple[tuple[Call], dict[str, Any]]:
        return Api.prepare(self, request) if is_form(request.environ) else super().prepare(request)

    def read_fields(self, environ: Environ) -> Mapping[str, str]:
        given = super().read_fields(environ)
        basic = basic_credentials(environ)
        if basic is None:
            return given
        if "client_id" in given or "client_secret" in given:
            raise BadRequest("The client authenticates itself twice.")
        return {**given, "client_id": basic[0], "client_secret": basic[1]}


def basic_credentials(environ: Environ) -> tuple[str, str] | None:
    """The name and the secret of HTTP Basic authentication (RFC 6749, section 2.3.1), or None. Raises BadRequest."""
    scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, secret = base64.b64decode(given.strip(), validate=True).decode().partition(":")
    except ValueError as error:
        raise BadRequest("The Authorization header cannot be read.") from error
    if not colon:
        raise BadRequest("The Authorization header cannot be read.")
    return unquote_plus(name), unquote_plus(secret)


class Tokens:
    """Routes under /api/auth."""

    auth = RpcProxy("auth_service")

    @TokenRoute.decorator(
        "POST",
        "/api/auth/token",
        roles=None,
        body=TokenRequest,
        form=Grant,
        answer=TokenAnswer,
        fails=(Unauthenticated, Forbidden, InvalidGrant, InvalidClient, UnsupportedGrantType),
        summary="Sign in",
    )
    def token(self, call: Call) -> dict[str, Any]:
        """A bearer token for a name and its password or, in mock mode, for the given user and roles.

        As a form it is the token endpoint of RFC 6749: for `client_credentials` a service's name and key, for
        `refresh_token` a refresh token. Errors then have the words and the shape of that document.
        """
        given = call.body
        if "grant_type" in given:
            return self._grant(call)
        if "username" in given:
            return self.auth.issue_token(given["username"], given["password"], origin_of(call))
        return self.auth.issue_mock_token(**given)

    def _grant(self, call: Call) -> dict[str, Any]:
        given = call.body
        if given["grant_type"] == "refresh_token":
            _require(given, "refresh_token")
            renewed = self.auth.refresh(given["refresh_token"], origin_of(call))
            return {name: renewed[name] for name in ("access_token", "token_type", "expires_in", "refresh_token")}
        if given["grant_type"] != "client_credentials":
            raise UnsupportedGrantType
        _require(given, "client_id", "client_secret")
        try:
            answer: dict[str, Any] = self.auth.exchange_key(given["client_id"], given["client_secret"])
        except InvalidGrant as error:
            raise InvalidClient from error
        return answer

    @api(
        "POST",
        "/api/auth/introspect",
        roles=(SERVICE, ADMIN),
        body=IntrospectionRequest,
        answer=Introspection,
        summary="Introspect a token",
    )
    def introspect(self, call: Call) -> dict[str, Any]:
        """The answer of RFC 7662. For a token that is not valid it is `{"active": false}`."""
        return self.auth.introspect(call.body["token"])


def _require(given: Mapping[str, Any], *names: str) -> None:
    missing = {name: ["Missing data for required field."] for name in names if name not in given}
    if missing:
        raise ValidationFailed(details=missing)
