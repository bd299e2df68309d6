"""The schema. Comments say what a row promises; db/migrations/ brings a database here, and a test compares the two.

Hot tables (attachment, replica, lock, request) hold keys, sizes and states only, and no foreign keys: what they refer
to is never removed, and 10^9 inserts need not prove it each time (docs/adr/0002). `dlm-admin verify` looks for orphans.
"""

from dlm.db.models import deleting, happened, promises, what, where, who
from dlm.db.models.happened import PARTITIONED
from dlm.db.models.schema import metadata

__all__ = ["PARTITIONED", "deleting", "happened", "metadata", "promises", "what", "where", "who"]
