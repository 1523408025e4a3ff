"""Pages for people: rendered here, with no script and nothing from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gateway.http import Answer, Api
from gateway.reader import Reader

TEMPLATES = Path(__file__).with_name("templates")
STYLE = (TEMPLATES / "page.css").read_text(encoding="utf-8")

# The one style sheet stands in the page and is allowed by its hash; nothing else is.
POLICY = "; ".join(
    [
        "default-src 'none'",
        f"style-src 'sha256-{b64encode(sha256(STYLE.encode()).digest()).decode()}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

_JINJA = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_JINJA.globals["style"] = Markup(STYLE)  # our own file


class PageRoute(Api):
    """A route that answers with a page."""

    content_type = "text/html; charset=utf-8"

    def encode(self, body: Any) -> str:
        return str(body)


page = PageRoute.decorator


def render(template: str, **values: Any) -> Answer:
    """A page."""
    return Answer(_JINJA.get_template(template).render(values), headers=(("Content-Security-Policy", POLICY),))


# --- the API's documentation -----------------------------------------------------------------------------------


def docs(document: Mapping[str, Any]) -> Answer:
    """The page that says what the OpenAPI document says."""
    reader = Reader(document)
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(reader.operation(method.upper(), path, operation))
    return render(
        "docs.html",
        info=document["info"],
        groups=groups,
        paragraphs=document["info"]["description"].strip().split("\n\n"),
    )
