"""Secrets: what storages are spoken to with. Values come from files, standard input or a prompt, never as arguments."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dlm.cli.accounts import LIMIT
from dlm.cli.client import named
from dlm.cli.output import Column
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import KEY_VALUE, counted, shown_moment
from dlm.core import secrets
from dlm.db.engine import Database
from dlm.db.opening import open_database
from dlm.errors import InvalidInput

STDIN = "-"
MAX_BYTES = 1_000_000
COLUMNS = (
    Column("SECRET", "name"),
    Column("OWNER", "owner"),
    Column("VALUES", "keys"),
    Column("SET", lambda item: shown_moment(item["set_at"])),
    Column("KEY", "key_id"),
    Column("STORAGES", "storages"),
)


@click.group(cls=Noun)
def secret() -> None:
    """What storages are spoken to with; kept encrypted, and never shown."""


@secret.command("list")
@LIMIT
@pass_session
def list_secrets(session: Session, limit: int | None) -> None:
    """Secrets by name: what their values are called, and which storages name them. Never a value."""
    empty = "no secrets   add one: dlm-admin secret add NAME KEY…"
    session.out.table(session.client.items("/secrets", limit), COLUMNS, empty)


@secret.command("show")
@click.argument("name")
@pass_session
def show_secret(session: Session, name: str) -> None:
    """What may be told of a secret; never a value."""
    item = session.client.get(named("secrets", name))
    labels = [
        ("secret", item["name"]),
        ("owner", item["owner"] or "made on the host"),
        ("values", item["keys"]),
        ("storages", item["storages"] or "none"),
        ("created", shown_moment(item["created_at"])),
        ("set", shown_moment(item["set_at"])),
        ("key", item["key_id"]),
        ("rotated", item["rotated_at"] and shown_moment(item["rotated_at"])),
    ]
    session.out.facts(item, labels)


def with_values(command: Any) -> Any:
    """The argument and options that say where values come from, for `add` and `set`."""
    options = (
        click.argument("keys", nargs=-1, metavar="[KEY]…"),
        click.option("--file", "file", metavar="FILE", help="A JSON object with values by key; '-': standard input."),
        click.option(
            "--from",
            "sources",
            type=KEY_VALUE,
            multiple=True,
            metavar="KEY=FILE",
            help="One value, all that is in the file (a PEM, a token); may be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@secret.command("add")
@click.argument("name")
@with_values
@pass_session
def add_secret(
    session: Session, name: str, keys: tuple[str, ...], file: str | None, sources: tuple[tuple[str, str], ...]
) -> None:
    """Keep a secret, encrypted.

    Each KEY (s3: access_key secret_key; WebDAV: token, or username password; SFTP: username, and password or
    private_key) is asked for without being shown; where there is no terminal, a line of standard input is taken for
    each. Values are never arguments: everybody on the host sees those.
    """
    values = read_values(keys, file, sources)
    item = session.client.post("/secrets", {"name": name, "values": values})
    session.out.said(f"secret {name} with {', '.join(item['keys'])}", item)


@secret.command("set")
@click.argument("name")
@with_values
@pass_session
def set_secret(
    session: Session, name: str, keys: tuple[str, ...], file: str | None, sources: tuple[tuple[str, str], ...]
) -> None:
    """Give a secret these values, and no others; taken as for `add`.

    Storages are spoken to with them from the next pass on; those that waited for them go on by themselves.
    """
    values = read_values(keys, file, sources)
    item = session.client.call("PUT", named("secrets", name), {"values": values})
    session.out.said(f"secret {name} has {', '.join(item['keys'])} now", item)


@secret.command("remove")
@click.argument("name")
@pass_session
def remove_secret(session: Session, name: str) -> None:
    """Remove a secret that no storage names."""
    session.client.delete(named("secrets", name))
    session.out.said(f"secret {name} is removed", {"name": name})


# ------------------------------------------------------------------------------------------------------- values


def read_values(keys: tuple[str, ...], file: str | None, sources: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The values by key, from all that was named. What was read is in no error."""
    if not all(secrets.KEY.fullmatch(key) for key in keys):
        hint = "name the keys only; if that was a value, take another: others on this host may have seen it"
        raise InvalidInput("values are not given as arguments", field="key", hint=hint)
    if not (keys or file or sources):
        raise InvalidInput("no value is given", field="key", hint="KEY…, --from KEY=FILE or --file FILE")
    if [STDIN for _, path in sources if path == STDIN][1:] or (STDIN in dict(sources).values() and file == STDIN):
        raise InvalidInput("standard input can be read once", field="from")
    values = {} if file is None else _of_json(_read(file))
    values |= {key: _without_end(_read(path)) for key, path in sources}
    return values | {key: _asked(key) for key in keys}


def _of_json(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        hint = 'e.g. {"access_key": "…", "secret_key": "…"}'
        raise InvalidInput("this is no JSON object of texts", field="file", hint=hint) from None
    return found


def _read(path: str) -> str:
    data = sys.stdin.buffer.read(MAX_BYTES + 1) if path == STDIN else _of_file(path)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or len(data) > MAX_BYTES:
        name = "standard input" if path == STDIN else path
        raise InvalidInput(f"{name} holds no text of 1 to {MAX_BYTES:,} bytes", field="file")
    return text


def _without_end(text: str) -> str:
    """The text without the line break that editors put after a single line; a PEM stays as it is."""
    line = text.rstrip("\r\n")
    return text if "\n" in line else line


def _of_file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _asked(key: str) -> str:
    """What is typed at the prompt, unseen; without a terminal the next line of standard input."""
    if sys.stdin.isatty():
        return str(click.prompt(key, hide_input=True, err=True))
    line = sys.stdin.readline(MAX_BYTES).rstrip("\r\n")
    if not line:
        raise InvalidInput(f"standard input has no line for {key}", field=key)
    return line


# ------------------------------------------------------------------------------------------------------ rotating


@secret.command("rotate")
@click.option("--drop-old", is_flag=True, help="Afterwards take the older keys out of the file: nothing needs them.")
@pass_session
def rotate(session: Session, drop_old: bool) -> None:
    """Encrypt all secrets under a new key, put first into secrets.key_file. On the host, with its settings.

    Services go on meanwhile: the older keys stay in the file, and read. An interrupted run is finished by the next one.
    Where the keys stand in DLM_SECRETS_KEY, or several hosts have the file, put the new key first everywhere, then run
    this. With --drop-old a database backup from before needs the older keys from elsewhere. Exit status 1 when
    something could not be read.
    """
    database = open_database(session.settings)
    try:
        item = rotated(database, drop_old)
        key_file = session.settings.secrets_key_file if database.vault.is_writable else None
    finally:
        database.dispose()
    dropped = f"   older keys are out of the file: {' '.join(item['dropped'])}" if item["dropped"] else ""
    text = f"{counted(item['secrets'], 'secret')} encrypted under key {item['key_id']}{dropped}"
    for name in item["unreadable"]:
        text += f"\n unreadable: {name}   dlm-admin secret set {name}"
    session.out.said(text, {**item, "key_file": key_file})
    if item["unreadable"]:
        raise click.exceptions.Exit(1)


def rotated(database: Database, drop_old: bool) -> dict[str, Any]:
    """What a whole rotation did, batch by batch, each in its own transaction."""
    with database.begin("admin.rotate") as tx:
        key_id = secrets.begin_rotation(tx)
    done: dict[str, Any] = {"key_id": key_id, "secrets": 0, "unreadable": [], "dropped": []}
    for batch in _batches(database):
        done["secrets"] += batch.secrets
        done["unreadable"] += batch.unreadable
    if drop_old and not done["unreadable"]:
        with database.begin("admin.drop-keys") as tx:
            done["dropped"] = secrets.drop_keys(tx)
    return done


def _batches(database: Database) -> Iterator[secrets.Rotated]:
    after: int | None = 0
    while after is not None:
        with database.begin("admin.rotate-batch") as tx:
            batch = secrets.rotate_batch(tx, after)
        yield batch
        after = batch.last_id
