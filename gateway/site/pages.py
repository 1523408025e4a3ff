"""Pages for people, rendered on the server: no scripts, nothing from other servers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from werkzeug.wrappers import Request, Response

from gateway.api.answering import Answer, as_json_line, respond
from gateway.api.http import Api
from gateway.site import words
from gateway.site.reader import DocumentReader

TEMPLATES = Path(__file__).with_name("templates")

_JINJA = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Look:
    """The style sheet of some pages, which contain it. The Content-Security-Policy allows only its hash."""

    def __init__(self, *sheets: str, forms: bool = False) -> None:
        self.style = "".join((TEMPLATES / sheet).read_text(encoding="utf-8") for sheet in sheets)
        digest = b64encode(sha256(self.style.encode()).digest()).decode()
        self.policy = "; ".join(
            [
                "default-src 'none'",
                f"style-src 'sha256-{digest}'",
                "base-uri 'none'",
                f"form-action '{'self' if forms else 'none'}'",
                "frame-ancestors 'none'",
            ]
        )


def at(moment: str, precise: bool = False) -> str:
    """An RFC 3339 time without its zone, where the page says that it is UTC: 2026-01-14 10:30:00."""
    text = moment.removesuffix("Z").replace("T", " ")
    return text if precise else text.partition(".")[0]


def readable(moment: str, precise: bool = False) -> str:
    """An RFC 3339 time with its zone: 2026-01-14 10:30:00 UTC."""
    return f"{at(moment, precise)} UTC"


def action(operation: Mapping[str, Any]) -> str:
    """The action of an operator on a message, as a verb."""
    return {"replay": "replayed", "import": "put back"}.get(operation["kind"], operation["kind"])


_JINJA.filters |= {"at": at, "readable": readable, "action": action}
_JINJA.filters |= {"step": words.step, "plain": words.plain, "details": words.details}

DOCS = Look("base.css", "docs.css")


class PageRoute(Api):
    """A route that answers with a page."""

    content_type = "text/html; charset=utf-8"

    def encode(self, body: Any) -> str:
        return str(body)


class DocsRoute(PageRoute):
    """The page of an OpenAPI document, which the method returns. Its examples call the address of the page itself."""

    def answer(self, request: Request, result: Any) -> Response:
        return super().answer(request, docs(result, self._proxies.origin(request.environ)))


docs_route = DocsRoute.decorator


def render(look: Look, template: str, **values: Any) -> Answer:
    """Render a template as a page."""
    # The style comes from our own files, so it needs no escaping.
    body = _JINJA.get_template(template).render(values, style=Markup(look.style))
    return Answer(body, headers=(("Content-Security-Policy", look.policy),))


class Link(NamedTuple):
    """A page or document that the first page leads to."""

    name: str
    path: str
    words: str


LINKS = (
    Link("docs", "/docs", "the API, for people"),
    Link("openapi", "/api/openapi.json", "the API, for programs"),
    Link("dashboard", "/dashboard", "the release audit; sign in as an auditor"),
)


class BesideRoute(PageRoute):
    """A page that is no part of the API."""

    in_document = False


page_beside = BesideRoute.decorator


class HomeRoute(BesideRoute):
    """A page for browsers; the same links as JSON for programs, which do not ask for HTML."""

    def answer(self, request: Request, result: Any) -> Response:
        response = super().answer(request, result)
        kinds = (Api.content_type, "text/html")
        if request.accept_mimetypes.best_match(kinds, default=Api.content_type) == Api.content_type:
            response = respond(request.environ, self.status, as_json_line({link.name: link.path for link in LINKS}))
        response.headers["Vary"] = "Accept"
        return response


home_page = HomeRoute.decorator


def home() -> Answer:
    """The first page."""
    return render(DOCS, "home.html", links=LINKS)


def docs(document: Mapping[str, Any], origin: str) -> Answer:
    """The OpenAPI document as a page, whose examples call the API at this origin."""
    reader = DocumentReader(document)
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(reader.operation(method.upper(), path, operation))
    return render(
        DOCS,
        "docs.html",
        info=document["info"],
        origin=origin,
        groups=groups,
        paragraphs=document["info"]["description"].strip().split("\n\n"),
    )
