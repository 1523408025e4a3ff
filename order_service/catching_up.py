"""Bringing the copy of the offers up to date by asking the catalog, whatever became of the events."""

from __future__ import annotations

import logging
from typing import Any

from order_service import offers
from shared.edge.database import Sessions
from shared.errors import CannotWork, ServiceUnavailable
from shared.metrics import OFFERS_AHEAD, OFFERS_BEHIND

log = logging.getLogger(__name__)

# So many versions in one call, and so many whole offers.
PAGE, FETCH = 1_000, 200


def catch_up(db: Sessions, catalog: Any) -> int:
    """Fetch every offer of which the catalog knows a later version than the copy; how many there were.

    A copy that is ahead is reported and not changed: the catalog was restored from a backup, perhaps. Raises CannotWork
    where the catalog does not answer.
    """
    behind, ahead, after, more = 0, 0, "", True
    try:
        while more:
            page = catalog.offer_versions(after, PAGE)
            versions, more = page["versions"], page["more"]
            if not versions:
                break
            after = max(versions)
            with db.read() as session:
                known = offers.versions_of(session, versions)
            later = sorted(sku for sku, version in versions.items() if known.get(sku, 0) > version)
            if later:
                log.warning("the copy of %s offers is ahead of the catalog: %s", len(later), ", ".join(later[:10]))
            ahead += len(later)
            stale = sorted(sku for sku, version in versions.items() if known.get(sku, 0) < version)
            behind += len(stale)
            for start in range(0, len(stale), FETCH):
                said = offers.as_said(catalog.offers_of(stale[start : start + FETCH])["offers"])
                with db.begin() as session:
                    offers.save(session, said.values())
    except ServiceUnavailable as error:
        raise CannotWork(f"the catalog does not answer: {error}") from error
    OFFERS_BEHIND.set(behind)
    OFFERS_AHEAD.set(ahead)
    return behind
