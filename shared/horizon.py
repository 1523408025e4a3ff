"""Reading rows in an order in which no row can ever appear before one that was read.

Ids are assigned before the commit, so a row may become visible although rows with larger ids were read long ago. Rows
that hold the id of their transaction (xid) are read in the order (xid, id), and only below the horizon.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ColumnElement, literal_column

# Every transaction with an id below the horizon has committed or rolled back, so no new row can appear there. Reading
# the horizon does not wait. An open transaction only delays the rows above the horizon.
HORIZON: ColumnElement[int] = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)

# The next transaction id: no open or finished transaction has this id or a larger one.
NEXT_XID: ColumnElement[int] = literal_column("pg_snapshot_xmax(pg_current_snapshot())::text::bigint", BigInteger)

# The default of a column `xid`: the id of the transaction that inserts the row.
CURRENT_XID = "(pg_current_xact_id()::text::bigint)"
