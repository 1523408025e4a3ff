"""Who may do what with the rows of a table: RIGHTS in each service's models.py, which `ecom migrate` grants."""

from __future__ import annotations

from dataclasses import dataclass

# The role that reads the services' databases, and the one that records which messages lie in a DLQ. Both belong to the
# whole database server. The services' own roles are those of their URLs.
READER = "ecom_reader"
OPERATOR = "ecom_operator"


@dataclass(frozen=True)
class Rights:
    """The rights on one table. The service's own role may read it; everything else is listed here.

    Without `changed` and `deleted_because` the table is append-only for the service's own role.
    """

    added: bool = True  # whether the service's own role adds rows; False where a trigger does
    changed: tuple[str, ...] = ()  # the columns that the service's own role may change in an existing row
    deleted_because: str = ""  # why the service's own role deletes rows; without a reason it may not
    read: tuple[str, ...] = ()  # the columns that READER sees
    operator_adds: tuple[str, ...] = ()  # the columns that OPERATOR fills in a new row
    operator_changes: tuple[str, ...] = ()  # the columns that OPERATOR changes; it sees what READER sees
    purged_by: str = ""  # the owner's function that forgets what is old, which the service's own role may call

    @property
    def append_only(self) -> bool:
        """Whether the service's own role can neither change nor delete a row."""
        return not self.changed and not self.deleted_because
