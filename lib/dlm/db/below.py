"""The files below datasets and locks, as a piece of SQL that the planner can turn either way."""

from __future__ import annotations


def files_of(source: str) -> str:
    """SELECT each row of `source` (a table or CTE with a did_id) once per file it means, with file_id and file_bytes.

    Two joins, not one LATERAL per row: PostgreSQL thinks of each did_id as a dataset of the usual size, and where the
    usual dataset has a million files it read all attachments anew for each of a thousand locks on single files.
    """
    return f"""
        SELECT {source}.*, a.child_id AS file_id, a.size_bytes AS file_bytes
          FROM {source} JOIN did d ON d.id = {source}.did_id AND d.kind = 'dataset'
          JOIN attachment a ON a.parent_id = {source}.did_id
         UNION ALL
        SELECT {source}.*, d.id, d.size_bytes
          FROM {source} JOIN did d ON d.id = {source}.did_id AND d.kind = 'file'"""
