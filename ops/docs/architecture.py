"""Draws docs/images/architecture.svg from the tables: `python -m ops.docs.architecture`.

The services, their databases and ports, the queues with what they are bound to, and the events that each service
publishes come from `topology.services`, `topology.table` and the catalogue. Only the layout is written here: people on
the left, then the gateway, one band for each other service, its queues, and the exchange on the right. A new service
is a new band. `python -m ops.docs.contracts` draws it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import wrap

from shared.config import FIRST_PORT
from shared.events import CATALOGUE
from topology.services import DATABASES, publisher_of
from topology.services import NAMES as SERVICES
from topology.table import (
    EVENTS_EXCHANGE,
    HINTS_EXCHANGE,
    QUEUES,
    RETRY_WAITS_S,
    dead_letter_queue,
    retry_queues,
)

FILE = Path(__file__).resolve().parents[2] / "docs" / "images" / "architecture.svg"

GATEWAY, OPS = "gateway", "ops"
PEOPLE = (
    ("Clients", "order, follow", "and cancel", "HTTP /api"),
    ("Auditors", "read and export", "the release audit", "HTTP /dashboard"),
    ("Operators", "handle dead", "messages: HTTP", "/api/ops, or ecom"),
)
# What a service does, in a few words for its box. A service need not have any.
WORDS = {
    "order": f"owns orders; announces changes on {HINTS_EXCHANGE}",
    "inventory": "owns stock, reservations and the release audit",
    "payment": "owns payments; calls the payment provider",
    "auth": "owns people, their sessions and keys; issues tokens",
    "catalog": "owns what is sold, and its prices",
    OPS: "replays dead messages; keeps copies of the audit's seals",
}

# Columns, in pixels: left edge and width.
MARGIN = 16
PEOPLE_AT, PEOPLE_WIDTH = MARGIN, 136
GATEWAY_AT, GATEWAY_WIDTH = 190, 92
SERVICE_AT, SERVICE_WIDTH = 336, 180
BROKER_AT, BROKER_WIDTH = 548, 424
QUEUE_AT, QUEUE_WIDTH = 568, 290
EXCHANGE_AT, EXCHANGE_WIDTH = 910, 44
WIDTH = BROKER_AT + BROKER_WIDTH + MARGIN

# Rows, in pixels.
TOP = 50
BAND_GAP, BAND_PADDING = 14, 10
LINE, QUEUE_PADDING, QUEUE_GAP = 16, 6, 8
DATABASE_HEIGHT = 28
EVENTS_LINE, WORDS_LINE, BINDINGS_LINE = 48, 24, 40  # characters

STYLE = """\
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #818b98; --box: #f6f8fa; --edge: #d1d9e0;
  --service: #ddf4ff; --service-edge: #54aeff; --broker: #fff8f0; --broker-edge: #f0c8a0; --exchange: #ffe2c4;
  --database: #dafbe1; --database-edge: #4ac26b; --event: #bc4c00; --call: #0969da; }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --line: #9198a1;
  --box: #151b23; --edge: #3d444d; --service: #10233c; --service-edge: #1f6feb; --broker: #1b150e;
  --broker-edge: #6b4a26; --exchange: #4a2f12; --database: #12261a; --database-edge: #238636; --event: #ffa657;
  --call: #58a6ff; } }
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink); }
.name { font-weight: 600; font-size: 14px; }
.soft { fill: var(--soft); font-size: 12px; }
.code { font: 12px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.event { fill: var(--event); font-size: 11px; }
.middle { text-anchor: middle; }
.paper { fill: var(--paper); }
.box { fill: var(--box); stroke: var(--edge); }
.service { fill: var(--service); stroke: var(--service-edge); }
.broker { fill: var(--broker); stroke: var(--broker-edge); }
.exchange { fill: var(--exchange); stroke: var(--broker-edge); }
.queue { fill: var(--paper); stroke: var(--broker-edge); }
.database { fill: var(--database); stroke: var(--database-edge); }
.events { stroke: var(--event); stroke-width: 1.5; fill: none; marker-end: url(#event); }
.calls { stroke: var(--call); stroke-width: 1.5; fill: none; marker-end: url(#call); }
.event-head { fill: var(--event); }
.call-head { fill: var(--call); }"""


@dataclass(frozen=True)
class Box:
    """A queue as it is drawn, or all dead letter queues as one."""

    name: str
    words: tuple[str, ...]  # lines
    bound: bool = True  # to the exchange; else it is read and written by the service

    @property
    def height(self) -> int:
        """Of the box: its name and its lines."""
        return QUEUE_PADDING + LINE * (1 + len(self.words))


@dataclass(frozen=True)
class Band:
    """One service with its place: its words, what it publishes, and its queues."""

    service: str
    top: int
    words: tuple[str, ...]  # lines
    published: tuple[str, ...]  # lines
    queues: tuple[Box, ...]

    @property
    def words_top(self) -> int:
        """The first line of the service's words, under its name and port."""
        return self.top + 62

    @property
    def database_top(self) -> int:
        """Under the words."""
        return self.words_top + LINE * len(self.words) - 4

    @property
    def queues_top(self) -> int:
        """Where the first queue begins: under the events published."""
        return self.top + BAND_PADDING + (BAND_PADDING + LINE * len(self.published) if self.published else 0)

    @property
    def bottom(self) -> int:
        """Where the band ends: under its queues or its database, whichever is lower."""
        queues = sum(queue.height + QUEUE_GAP for queue in self.queues) - QUEUE_GAP
        return max(self.queues_top + queues, self.database_top + DATABASE_HEIGHT) + BAND_PADDING

    @property
    def on_broker(self) -> bool:
        """Whether it publishes events or reads queues."""
        return bool(self.published or self.queues)


def bands() -> list[Band]:
    """Every service but the gateway, one below the other: first those that use the broker for more than RPC."""
    made: list[Band] = []
    for service in sorted(
        (service for service in SERVICES if service != GATEWAY), key=lambda one: not _uses_queues(one)
    ):
        events = [type_ for type_ in CATALOGUE if publisher_of(type_) == service]
        made.append(
            Band(
                service,
                made[-1].bottom + BAND_GAP if made else TOP,
                tuple(wrap(WORDS.get(service, ""), WORDS_LINE)),
                tuple(wrap("publishes " + ", ".join(events), EVENTS_LINE, break_on_hyphens=False)) if events else (),
                _queues(service),
            )
        )
    return made


def _queues(service: str) -> tuple[Box, ...]:
    if service == OPS:
        return (Box(dead_letter_queue("q.*"), ("every dead letter queue",), bound=False),)
    return tuple(
        Box(queue.name, tuple(wrap(f"bound to {', '.join(queue.bindings)}", BINDINGS_LINE, break_on_hyphens=False)))
        for queue in QUEUES
        if queue.service == service
    )


def _uses_queues(service: str) -> bool:
    return bool(_queues(service)) or any(publisher_of(type_) == service for type_ in CATALOGUE)


def document() -> str:
    """The picture as it should be."""
    rows = bands()
    bottom = rows[-1].bottom
    broker_bottom = max((band.bottom for band in rows if band.on_broker), default=bottom)
    legend = _legend(bottom + 36)
    height = bottom + 36 + LINE * len(legend)
    about = (
        f"People call the gateway. It calls {len(rows)} services by RPC. They exchange events over {EVENTS_EXCHANGE}."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'role="img" aria-labelledby="title about">',
            '<title id="title">The architecture of ecom</title>',
            f'<desc id="about">{escape(about)}</desc>',
            f"<style>\n{STYLE}\n</style>",
            f"<defs>{_head('event')}{_head('call')}</defs>",
            _rectangle(0, 0, WIDTH, height, "paper", radius=0),
            *_people(bottom),
            *_gateway(bottom),
            _rectangle(BROKER_AT, TOP - 34, BROKER_WIDTH, broker_bottom - TOP + 48, "broker"),
            _text(BROKER_AT + 20, TOP - 14, "RabbitMQ", "name"),
            *_exchange(broker_bottom),
            *(shape for band in rows for shape in _band(band)),
            *legend,
            "</svg>\n",
        ]
    )


def _people(bottom: int) -> list[str]:
    height, step = 88, (bottom - TOP) // len(PEOPLE)
    shapes = []
    for number, (name, *lines) in enumerate(PEOPLE):
        top = TOP + number * step + (step - height) // 2
        shapes += [
            _rectangle(PEOPLE_AT, top, PEOPLE_WIDTH, height, "box"),
            _text(PEOPLE_AT + 12, top + 24, name, "name"),
            *(_text(PEOPLE_AT + 12, top + 42 + LINE * at, line, "soft") for at, line in enumerate(lines)),
            _arrow(PEOPLE_AT + PEOPLE_WIDTH, GATEWAY_AT, top + height // 2, "calls"),
        ]
    return shapes


def _gateway(bottom: int) -> list[str]:
    middle, centre = (TOP + bottom) // 2, GATEWAY_AT + GATEWAY_WIDTH // 2
    return [
        _rectangle(GATEWAY_AT, TOP, GATEWAY_WIDTH, bottom - TOP, "service"),
        _text(centre, middle - 18, GATEWAY, "name middle"),
        _text(centre, middle, _port(GATEWAY), "soft middle"),
        _text(centre, middle + 18, "no database", "soft middle"),
    ]


def _exchange(bottom: int) -> list[str]:
    x, y = EXCHANGE_AT + EXCHANGE_WIDTH // 2 + 5, (TOP + bottom) // 2
    return [
        _rectangle(EXCHANGE_AT, TOP, EXCHANGE_WIDTH, bottom - TOP, "exchange"),
        f'<text x="{x}" y="{y}" class="name middle" transform="rotate(-90 {x} {y})">topic exchange {EVENTS_EXCHANGE}'
        "</text>",
    ]


def _band(band: Band) -> list[str]:
    """A service, the call that reaches it, what it publishes, and its queues."""
    x, end, middle = SERVICE_AT + 14, SERVICE_AT + SERVICE_WIDTH, (band.top + band.bottom) // 2
    shapes = [
        _rectangle(SERVICE_AT, band.top, SERVICE_WIDTH, band.bottom - band.top, "service"),
        _text(x, band.top + 24, band.service, "name"),
        _text(x, band.top + 42, _port(band.service), "soft"),
        *(_text(x, band.words_top + LINE * number, line, "soft") for number, line in enumerate(band.words)),
        _arrow(GATEWAY_AT + GATEWAY_WIDTH, SERVICE_AT, middle, "calls"),
        _text((GATEWAY_AT + GATEWAY_WIDTH + SERVICE_AT) // 2 - 3, middle - 6, "RPC", "soft middle"),
    ]
    if band.service in DATABASES:
        shapes += _database(x, band.database_top, band.service)
    for number, line in enumerate(band.published):
        shapes.append(_text(QUEUE_AT, band.top + BAND_PADDING + 6 + LINE * number, line, "code event"))
    if band.published:
        shapes.append(_arrow(end, EXCHANGE_AT, band.queues_top - 12, "events"))
    top = band.queues_top
    for queue in band.queues:
        middle = top + queue.height // 2
        shapes += [
            _rectangle(QUEUE_AT, top, QUEUE_WIDTH, queue.height, "queue"),
            _text(QUEUE_AT + 12, top + 16, queue.name, "code"),
            *(_text(QUEUE_AT + 12, top + 31 + LINE * at, line, "code event") for at, line in enumerate(queue.words)),
            _arrow(QUEUE_AT, end, middle if queue.bound else middle - 6, "events"),
            _arrow(EXCHANGE_AT, QUEUE_AT + QUEUE_WIDTH, middle, "events")
            if queue.bound
            else _arrow(end, QUEUE_AT, middle + 6, "events"),
        ]
        top += queue.height + QUEUE_GAP
    return shapes


def _database(x: int, y: int, name: str) -> list[str]:
    width, lid = SERVICE_WIDTH - 28, 5
    sides = DATABASE_HEIGHT - lid
    return [
        f'<path d="M{x} {y} v{sides} a{width // 2} {lid} 0 0 0 {width} 0 v-{sides} '
        f'a{width // 2} {lid} 0 0 0 -{width} 0 a{width // 2} {lid} 0 0 0 {width} 0" class="database"/>',
        _text(x + width // 2, y + 20, f"database {name}", "soft middle"),
    ]


def _legend(y: int) -> list[str]:
    levels = ", ".join(f"{name} ({wait} s)" for name, wait in zip(retry_queues("q.x"), RETRY_WAITS_S, strict=True))
    lines = (
        "Blue: calls, by HTTP and by RPC. Orange: messages. A service publishes by its outbox and relay. "
        "Every service but the gateway has a PostgreSQL database.",
        f"Each queue q.x also has the retry queues {levels} and the dead letter queue {dead_letter_queue('q.x')}.",
    )
    return [_text(MARGIN, y + LINE * number, line, "soft") for number, line in enumerate(lines)]


def _port(service: str) -> str:
    return f"port {FIRST_PORT + SERVICES.index(service)}"


def _rectangle(x: int, y: int, width: int, height: int, kind: str, radius: int = 6) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" class="{kind}"/>'


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def _arrow(start: int, end: int, y: int, kind: str) -> str:
    return f'<path d="M{start} {y} H{end}" class="{kind}"/>'


def _head(kind: str) -> str:
    return (
        f'<marker id="{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 1 L9 5 L0 9 z" class="{kind}-head"/></marker>'
    )


def main() -> None:
    """Draw it."""
    FILE.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
