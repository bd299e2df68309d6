"""`verify`: do catalogue and storages keep the invariants? Looks at the database itself, not through the API."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from dlm.cli.session import Session, Verb, pass_session
from dlm.cli.units import counted, shown_seconds
from dlm.core import verify as invariants
from dlm.core.storages import get_storage
from dlm.db.opening import open_database


@click.command(cls=Verb)
@click.option("--files", is_flag=True, help="Compare every file on the storages with the catalogue, too.")
@click.option("--no-checksum", is_flag=True, help="With --files: presence and size only.")
@click.option("--storage", "names", multiple=True, help="With --files: only this one; may be repeated.")
@pass_session
def verify(session: Session, files: bool, no_checksum: bool, names: tuple[str, ...]) -> None:
    """Check the invariants. Each breach is a line; exit status 1 when there is one."""
    started = time.monotonic()
    database = open_database(session.settings)
    try:
        with database.begin("admin.verify", commit=False) as tx:
            found = invariants.verify(tx)
            if files:
                ids = [get_storage(tx, name).id for name in names] or None
                found += invariants.verify_files(tx, ids, with_checksum=not no_checksum)
    finally:
        database.dispose()
    for finding in found:
        session.out.said(str(finding), asdict(finding))
    spent = shown_seconds(round(time.monotonic() - started, 1))
    what = "the catalogue and the files" if files else "the catalogue"
    session.out.line(
        f"{counted(len(found), 'breach').replace('breachs', 'breaches') if found else 'clean'}: {what}   {spent}"
    )
    if found:
        raise click.exceptions.Exit(1)
