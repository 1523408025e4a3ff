"""Sessions: staying signed in, seeing where one is, and signing out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import marshmallow
from marshmallow import fields

from gateway.api.fields import (
    EXAMPLE_ID,
    AnswerSchema,
    Flag,
    PageQuery,
    RequestSchema,
    Text,
    cursor_field,
    datetime_field,
    field_metadata,
    integer_field,
    list_field,
    text_field,
    uuid_field,
)
from gateway.api.forms import FormSchema, form_or_json
from gateway.api.http import SIGNED_IN, Api, Call, api
from gateway.origins import origin_of
from gateway.signed_in import SignedIn
from gateway.tokens import MAX_TOKEN
from shared.edge.http import BODY, Environ
from shared.edge.rpc_proxy import RpcProxy
from shared.errors import InvalidGrant


class RefreshRequest(RequestSchema):
    """A refresh token."""

    refresh_token = Text("ert_AaH8-AUVeRKROXFUV0RzpQAAAAE", at_most=MAX_TOKEN, required=True)


class LogoutRequest(RequestSchema):
    """Which sessions end."""

    all = Flag("every session of the user, and every token of before; otherwise only this session", load_default=False)


class RevocationRequest(RequestSchema):
    """A refresh token or an access token."""

    token = Text("ert_AaH8-AUVeRKROXFUV0RzpQAAAAE", at_most=MAX_TOKEN, required=True)
    token_type_hint = Text("refresh_token", "makes no difference", load_default=None)


class RevocationForm(FormSchema):
    """The same as a form."""

    token = Text("ert_AaH8-AUVeRKROXFUV0RzpQAAAAE", at_most=MAX_TOKEN, required=True)


class SessionOfUser(AnswerSchema):
    """Where a user is signed in."""

    id = uuid_field()
    client = text_field("Mozilla/5.0", "what the client called itself as it signed in")
    network = text_field("192.0.2.7", "an IPv4 address, or an IPv6 /64 network")
    created_at = datetime_field("when it began")
    used_at = datetime_field("when its token was renewed last")
    current = fields.Boolean(required=True, metadata=field_metadata(True, "whether this request belongs to it"))


class SessionPage(AnswerSchema):
    """A page of sessions, the newest first."""

    items = list_field(SessionOfUser)
    next_cursor = cursor_field()


class Validity(AnswerSchema):
    """A token that is valid."""

    valid = fields.Boolean(required=True, metadata=field_metadata(True))
    sub = text_field(EXAMPLE_ID, "the user's id")
    roles = fields.List(fields.String(metadata=field_metadata("customer")), required=True)
    exp = integer_field(1768387500, "when it ends, in seconds since 1970")


class Revoked(AnswerSchema):
    """Nothing: the answer is the same for every token."""


class WithoutBody(Api):
    """A route whose body may be left out."""

    needs_body = False

    def read_body(self, environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
        if environ[BODY]:
            return super().read_body(environ, schema)
        loaded: dict[str, Any] = schema.load({})
        return loaded


class Sessions:
    """Routes under /api/auth about sessions and tokens."""

    auth = RpcProxy("auth_service")

    @api(
        "POST",
        "/api/auth/refresh-token",
        roles=None,
        body=RefreshRequest,
        answer=SignedIn,
        fails=(InvalidGrant,),
        summary="Renew a token",
    )
    def refresh_token(self, call: Call) -> dict[str, Any]:
        """A new access token and the next refresh token, as on signing in.

        A refresh token is good for one refresh. If the answer is lost, send it again: for a minute the same one answers
        with the same successor. Later it ends the session, since somebody else may have it: 401 `invalid_grant`, as for
        every other fault. Sign in again then.
        """
        return self.auth.refresh(call.body["refresh_token"], origin_of(call))

    @WithoutBody.decorator(
        "POST",
        "/api/auth/logout",
        roles=SIGNED_IN,
        body=LogoutRequest,
        answer="The session has ended.",
        status=204,
        summary="Sign out",
    )
    def logout(self, call: Call) -> None:
        """Ends the session of the token, or all sessions of its user. Their tokens are refused within 2 s.

        A token that belongs to no session lives to its end, unless all end.
        """
        self.auth.sign_out(call.body["all"], origin_of(call))

    @api(
        "GET",
        "/api/auth/sessions",
        roles=SIGNED_IN,
        query=PageQuery,
        answer=SessionPage,
        summary="List your sessions",
    )
    def list_sessions(self, call: Call) -> dict[str, Any]:
        """Where you are signed in: the sessions that have not ended."""
        return self.auth.list_sessions(call.query["limit"], call.query["cursor"], origin_of(call))

    @api(
        "DELETE",
        "/api/auth/sessions/<uuid:session_id>",
        roles=SIGNED_IN,
        answer="The session has ended.",
        status=204,
        summary="End a session",
    )
    def end_session(self, call: Call, session_id: UUID) -> None:
        """Ends one of your sessions. Its tokens are refused within 2 s."""
        self.auth.end_session(str(session_id), origin_of(call))

    @form_or_json(
        "POST",
        "/api/auth/revoke",
        roles=None,
        body=RevocationRequest,
        form=RevocationForm,
        answer=Revoked,
        summary="Revoke a token",
    )
    def revoke(self, call: Call) -> dict[str, Any]:
        """Ends the session of a refresh token or an access token (RFC 7009), whoever sends it.

        200 whatever the token was. An access token without a session, and a service's key, are not revoked by this.
        """
        self.auth.revoke_token(call.body["token"], origin_of(call))
        return {}

    @api("POST", "/api/auth/validate-token", roles=SIGNED_IN, answer=Validity, summary="Validate your token")
    def validate_token(self, call: Call) -> dict[str, Any]:
        """What the token of this request says; 401 if it is not valid, or no longer. No other service is asked."""
        assert call.identity is not None
        who = call.identity
        return {"valid": True, "sub": who.user_id, "roles": list(who.roles), "exp": call.expires_at}
