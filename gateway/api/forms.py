"""Bodies that are forms (application/x-www-form-urlencoded)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import marshmallow
from werkzeug.http import parse_options_header
from werkzeug.wrappers import Response

from gateway.api.answering import as_json_line, respond
from gateway.api.errors import report_error
from gateway.api.fields import RequestSchema
from gateway.api.http import Api
from gateway.api.reading import by_field, check_content
from shared import errors
from shared.edge.http import BODY, Environ

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 20


def is_form(environ: Environ) -> bool:
    """Whether a request says that its body is a form."""
    return parse_options_header(environ.get("CONTENT_TYPE"))[0].lower() == FORM


def read_form(environ: Environ) -> Mapping[str, str]:
    """The fields of a form. Raises UnsupportedMediaType, BadRequest."""
    check_content(environ, FORM)
    try:
        pairs = pairs_of(environ)
    except ValueError as error:
        raise errors.BadRequest("The form cannot be read.") from error
    if len(dict(pairs)) != len(pairs):
        raise errors.BadRequest("A field of the form is given twice.")
    return dict(pairs)


def pairs_of(environ: Environ) -> list[tuple[str, str]]:
    """The fields of a form as they were sent. Raises ValueError."""
    body = environ[BODY].decode("ascii")
    return parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")


class FormSchema(RequestSchema):
    """Base of forms. Unlike JSON they may have further fields, which mean nothing (RFC 6749, section 3.2)."""

    class Meta:
        unknown = marshmallow.EXCLUDE


class FormOrJson(Api):
    """A route of OAuth 2.0. Its clients send forms, and get errors in the words of RFC 6749; ours send JSON."""

    def __init__(self, *args: Any, form: type[FormSchema], **declared: Any) -> None:
        super().__init__(*args, **declared)
        self.form = form

    def setup(self) -> None:
        super().setup()
        assert self.form is not None
        self._form = self.form()

    def read_body(self, environ: Environ, schema: marshmallow.Schema) -> dict[str, Any]:
        if not is_form(environ):
            return super().read_body(environ, schema)
        try:
            loaded: dict[str, Any] = self._form.load(self.read_fields(environ))
        except marshmallow.ValidationError as error:
            raise errors.ValidationFailed(details=by_field(error)) from error
        return loaded

    def read_fields(self, environ: Environ) -> Mapping[str, str]:
        """The fields of the form. Raises UnsupportedMediaType, BadRequest."""
        return read_form(environ)

    def respond_with_error(
        self, environ: Environ, error: Exception, headers: Iterable[tuple[str, str]] = ()
    ) -> Response:
        if not is_form(environ):
            return super().respond_with_error(environ, error, headers)
        status, reported, own = report_error(environ, error)
        status, word = _IN_OAUTH.get(status, (status, reported.code))
        word = reported.code if isinstance(reported, _OWN_WORDS) else word
        status, own = (400, []) if isinstance(reported, errors.InvalidGrant) else (status, own)
        details = "".join(f" {name}: {problem}" for name, problem in reported.details.items() if status == 400)
        body = {"error": word, "error_description": _QUOTED.sub("'", f"{reported.message}{details}")}
        return respond(environ, status, as_json_line(body), [*own, *headers])


form_or_json = FormOrJson.decorator

# RFC 6749 knows fewer words for what is wrong with a request.
_IN_OAUTH = dict.fromkeys((400, 413, 415, 422), (400, "invalid_request"))
_OWN_WORDS = (errors.UnsupportedGrantType, errors.InvalidGrant, errors.InvalidClient)
# error_description may hold no other characters (RFC 6749, section 5.2).
_QUOTED = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")
