"""docs/images/architecture.svg is what the tables say, and leaves out no service, queue, binding or event."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from ops.docs import architecture
from shared.events import CATALOGUE
from topology.services import DATABASES
from topology.services import NAMES as SERVICES
from topology.table import EVENTS_EXCHANGE, QUEUES, Queue

SHAPES = "{http://www.w3.org/2000/svg}"


def words(drawn: str) -> str:
    """Every text of a picture, one a line."""
    return "\n".join(element.text or "" for element in ElementTree.fromstring(drawn).iter(f"{SHAPES}text"))


def test_the_picture_on_disk_is_what_the_tables_say() -> None:
    assert architecture.FILE.read_text(encoding="utf-8") == architecture.document(), "run: python -m ops.docs.contracts"


def test_every_name_of_the_tables_is_drawn() -> None:
    drawn = words(architecture.document())

    databases = [f"database {name}" for name in DATABASES]
    queues = [name for queue in QUEUES for name in (queue.name, *queue.bindings)]
    for name in [*SERVICES, *databases, *queues, *CATALOGUE, EVENTS_EXCHANGE]:
        assert name in drawn


def test_nothing_is_drawn_outside_the_picture() -> None:
    root = ElementTree.fromstring(architecture.document())
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    for box in root.iter(f"{SHAPES}rect"):
        x, y, wide, high = (int(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width
        assert 0 <= y <= y + high <= height


def test_a_new_service_with_a_queue_gets_a_band_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "SERVICES", (*SERVICES, "kiln"))
    new = Queue("q.kiln.results", "kiln", ("order.paid", "order.cancelled", "inventory.committed", "payment.refunded"))
    monkeypatch.setattr(architecture, "QUEUES", (*QUEUES, new))

    bands = architecture.bands()

    assert all(above.bottom < below.top for above, below in pairwise(bands))
    drawn = words(architecture.document())
    assert all(name in drawn for name in (new.name, *new.bindings))
