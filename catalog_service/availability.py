"""The copy of what the inventory service says: whether a sku is sold out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.orm import Session

from catalog_service.models import AvailabilityRow
from shared.bulk import columns_of, insert_of, is_given, table_of
from shared.events import AvailabilityChanged

_TABLE = table_of(AvailabilityRow)
_NAMES = ("sku", "sold_out", "few", "version")


def _upsert() -> Insert:
    statement = insert_of(AvailabilityRow, *_NAMES)
    said = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["sku"],
        set_={"sold_out": said.sold_out, "few": said.few, "version": said.version},
        where=_TABLE.c.version < said.version,
    )


_LEARN = _upsert()


def learn(session: Session, heard: Sequence[AvailabilityChanged]) -> None:
    """Keep what is newer than what is known. `heard` has each sku once, sorted by sku. One statement."""
    if heard:
        session.execute(_LEARN, columns_of([vars(event) for event in heard], _NAMES))


_VERSIONS = select(_TABLE.c.sku, _TABLE.c.version).where(is_given(_TABLE.c.sku))


def versions(session: Session, skus: Collection[str]) -> dict[str, int]:
    """The versions of what is known of skus. One statement."""
    return {row.sku: row.version for row in session.execute(_VERSIONS, {"given_sku": list(skus)})}
