"""Storages: add, describe, switch, check, retire; and which of them an expression matches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import click

from dlm.cli.accounts import LIMIT
from dlm.cli.client import Client, named
from dlm.cli.output import Column, Item, safe
from dlm.cli.progress import Look, watch
from dlm.cli.session import Noun, Session, pass_session
from dlm.cli.units import DURATION, KEY_VALUE, SIZE, SWITCH, counted, shown_moment, shown_seconds, shown_size
from dlm.errors import InvalidInput

SWITCHES = (("can_read", "reading"), ("can_write", "writing"), ("can_delete", "deleting"))
COLUMNS = (
    Column("STORAGE", "name"),
    Column("SITE", "site"),
    Column("COUNTRY", "country"),
    Column("TYPE", "type"),
    Column("PHASE", "phase"),
    Column("CAPACITY", lambda item: shown_size(item["capacity_bytes"]), is_right=True),
    Column("STATE", lambda item: state(item)),
    Column("ATTRIBUTES", "attributes"),
)
USAGE_COLUMNS = (
    Column("STORAGE", "storage"),
    Column("FILES", "used_files", is_right=True),
    Column("USED", lambda item: shown_size(item["used_bytes"]), is_right=True),
    Column("COMING", lambda item: shown_size(item["reserved_bytes"]), is_right=True),
    Column("CAPACITY", lambda item: shown_size(item["capacity_bytes"]), is_right=True),
    Column("FULL", lambda item: full(item), is_right=True),
)
FINDING_COLUMNS = (
    Column("STATE", "state"),
    Column("DID", "did"),
    Column("FOUND", lambda item: shown_moment(item["found_at"])),
    Column("DETAIL", "detail"),
)
SHOWN_FOUND = 10


def state(item: Item) -> str:
    """'fine', or what is wrong or switched off, with the reason."""
    if not item["is_available"]:
        return f"unavailable: {item['unavailable_reason']}"
    off = [word for key, word in SWITCHES if not item[key]]
    return f"no {' or '.join(off)}: {item['switch_reason']}" if off else "fine"


def full(item: Item) -> str:
    """How full a storage is with what is promised to come."""
    if not item["capacity_bytes"]:
        return "-"
    return f"{100 * (item['used_bytes'] + item['reserved_bytes']) / item['capacity_bytes']:.0f} %"


@click.group(cls=Noun)
def storage() -> None:
    """Where data is kept."""


@storage.command("list")
@LIMIT
@pass_session
def list_storages(session: Session, limit: int | None) -> None:
    """Storages by name."""
    empty = "no storages   add one: dlm-admin storage add NAME --site SITE --path DIR"
    session.out.table(session.client.items("/storages", limit), COLUMNS, empty)


@storage.command("show")
@click.argument("name")
@pass_session
def show_storage(session: Session, name: str) -> None:
    """One storage."""
    item = session.client.get(named("storages", name))
    why = session.client.get(named("why", "storages", name))
    waits = [step["text"] for step in why["chain"] if step["step"] == "waits"]
    _show(session, {**item, "waits": waits})


def _show(session: Session, item: Item) -> None:
    labels = [
        ("storage", item["name"]),
        ("uuid", item["uuid"]),
        ("site", " ".join(filter(None, (item["site"], item["country"])))),
        ("state", state(item)),
        *(("waits", text) for text in item.get("waits", ())),
        ("type", f"{item['type']}, phase {item['phase']}"),
        ("capacity", _capacity(item)),
        ("attributes", item["attributes"] or "none"),
        *(("protocol", _spoken(way)) for way in item["protocols"]),
        ("reap", _reap(item)),
        ("looked at", item["looked_at"] and shown_moment(item["looked_at"])),
        ("created", shown_moment(item["created_at"])),
    ]
    session.out.facts(item, labels)


def _spoken(way: Item) -> str:
    """'s3 https://host/bucket, secret site-s3, region=eu'."""
    secret = [f"secret {way['credentials']}"] if way["credentials"] else []
    return ", ".join(
        [f"{way['scheme']} {way['prefix']}", *secret, *(f"{k}={text}" for k, text in way["options"].items())]
    )


def _capacity(item: Item) -> str:
    size = "not limited" if item["capacity_bytes"] is None else shown_size(item["capacity_bytes"])
    return f"{size}, {shown_size(item['min_free_bytes'])} of it kept free" if item["min_free_bytes"] else size


def _reap(item: Item) -> str:
    window = "the server's" if item["undo_window_s"] is None else shown_seconds(item["undo_window_s"])
    return f"{item['reap'].replace('_', ' ')}, undo window {window}"


def described(command: Any) -> Any:
    """The options that say what a storage is like, for `add` and `set`."""
    options = (
        click.option("--type", help="e.g. disk, tape; a word of your own is fine."),
        click.option("--phase", help="plasma, gas, liquid or solid: how safe one copy on it is."),
        click.option("--capacity", type=SIZE, help="e.g. 500TB."),
        click.option("--min-free", type=SIZE, help="Kept free of it."),
        click.option("--read", type=SWITCH, help="Off: nothing is read from it. Needs --reason."),
        click.option("--write", type=SWITCH, help="Off: nothing is written to it. Needs --reason."),
        click.option("--delete", type=SWITCH, help="Off: nothing on it is deleted. Needs --reason."),
        click.option("--reason", help="Why a switch is off."),
        click.option("--reap", help="eager, or when_full: unlocked copies stay as a cache until space is needed."),
        click.option("--undo-window", type=DURATION, help="How long an unlocked copy waits before it goes."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _body(given: Mapping[str, Any]) -> dict[str, Any]:
    """The request's members for the options that were given."""
    names = {
        "capacity": "capacity_bytes",
        "min_free": "min_free_bytes",
        "read": "can_read",
        "write": "can_write",
        "delete": "can_delete",
        "undo_window": "undo_window_s",
    }
    body = {names.get(key, key): value for key, value in given.items() if value is not None}
    if "undo_window_s" in body:
        body["undo_window_s"] = round(body["undo_window_s"])
    return body


@storage.command("add")
@click.argument("name")
@click.option("--site", required=True)
@click.option("--path", "path", help="A directory that the service can reach: short for --protocol posix=DIR.")
@click.option(
    "--protocol", "protocols", type=KEY_VALUE, multiple=True, metavar="SCHEME=PREFIX", help="A way to speak to it."
)
@click.option("--credentials", metavar="SECRET", help="The name of a secret, for each --protocol; never the secret.")
@click.option("--option", "options", type=KEY_VALUE, multiple=True, help="For each --protocol, e.g. region=eu-west-1.")
@click.option("--attribute", "attributes", type=KEY_VALUE, multiple=True, help="e.g. tier=1; may be repeated.")
@described
@pass_session
def add_storage(
    session: Session,
    name: str,
    site: str,
    path: str | None,
    protocols: tuple[tuple[str, str], ...],
    attributes: tuple[tuple[str, str], ...],
    **given: Any,
) -> None:
    """Add a storage. dlm's marker is put into its root, which is made if it is not there.

    With --write off nothing is ever written to it: data that is there already is registered in place.
    """
    told = {"credentials": given.pop("credentials"), "options": dict(given.pop("options"))}
    spoken: list[Item] = [{"scheme": scheme, "prefix": prefix, **told} for scheme, prefix in protocols]
    if path:
        spoken.insert(0, {"scheme": "posix", "prefix": os.path.abspath(path)})
    if not spoken:
        raise InvalidInput(
            "no way to speak to it is given", field="protocols", hint="--path DIR, or --protocol SCHEME=PREFIX"
        )
    body = {"name": name, "site": site, "protocols": spoken, "attributes": dict(attributes), **_body(given)}
    item = session.client.post("/storages", body)
    session.out.said(f"storage {name} at {item['site']}: {spoken[0]['prefix']}   {state(item)}", item)


@storage.command("set")
@click.argument("name")
@described
@pass_session
def set_storage(session: Session, name: str, **given: Any) -> None:
    """Change what a storage is like, or switch reading, writing, deleting on and off."""
    if not (body := _body(given)):
        raise InvalidInput("nothing to change is named", hint="dlm-admin storage set --help")
    _show(session, session.client.patch(named("storages", name), body))


@click.group(cls=Noun)
def protocol() -> None:
    """What a storage is spoken to with: the secret that it names, and options."""


storage.add_command(protocol, "protocol")


@protocol.command("set")
@click.argument("name")
@click.option("--scheme", help="Which of its protocols; needed when it has several.")
@click.option("--credentials", metavar="SECRET", help="The name of a secret; '' for none.")
@click.option("--option", "options", type=KEY_VALUE, multiple=True, help="e.g. timeout_s=30; may be repeated.")
@click.option("--unset", "unset", multiple=True, metavar="KEY", help="An option to take away; may be repeated.")
@pass_session
def set_protocol(
    session: Session,
    name: str,
    scheme: str | None,
    credentials: str | None,
    options: tuple[tuple[str, str], ...],
    unset: tuple[str, ...],
) -> None:
    """Change the secret that a storage names, or its options; what is not named stays."""
    body: dict[str, Any] = {} if credentials is None else {"credentials": credentials or None}
    if options or unset:
        body["options"] = {**dict(options), **dict.fromkeys(unset)}
    if not body:
        raise InvalidInput("nothing to change is named", hint="--credentials, --option, --unset")
    scheme = scheme or _only_scheme(session.client.get(named("storages", name)))
    _show(session, session.client.patch(named("storages", name, "protocols", scheme), body))


def _only_scheme(item: Item) -> str:
    schemes = [way["scheme"] for way in item["protocols"]]
    if len(schemes) > 1:
        raise InvalidInput(f"{item['name']} has several protocols", field="scheme", hint=f"--scheme {schemes[0]}")
    return str(schemes[0])


@click.group(cls=Noun)
def attributes() -> None:
    """What expressions match: free attributes, e.g. tier=1."""


storage.add_command(attributes, "attributes")


@attributes.command("show")
@click.argument("name")
@pass_session
def show_attributes(session: Session, name: str) -> None:
    """A storage's attributes."""
    _attributes(session, session.client.get(named("storages", name)))


def _attributes(session: Session, item: Item) -> None:
    session.out.facts({"storage": item["name"], "attributes": item["attributes"]}, item["attributes"].items())


@attributes.command("set")
@click.argument("name")
@click.argument("pairs", nargs=-1, required=True, type=KEY_VALUE, metavar="KEY=VALUE…")
@pass_session
def set_attributes(session: Session, name: str, pairs: tuple[tuple[str, str], ...]) -> None:
    """Set attributes; what is not named stays, and rules look again."""
    _attributes(session, session.client.patch(named("storages", name, "attributes"), dict(pairs)))


@attributes.command("unset")
@click.argument("name")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@pass_session
def unset_attributes(session: Session, name: str, keys: tuple[str, ...]) -> None:
    """Take attributes away; rules look again."""
    _attributes(session, session.client.patch(named("storages", name, "attributes"), dict.fromkeys(keys)))


@storage.command("usage")
@click.argument("name", required=False)
@pass_session
def usage_of_storages(session: Session, name: str | None) -> None:
    """What is on storages, and what is promised to come."""
    items = session.client.get("/usage/storages")["items"]
    if name is not None:
        session.client.get(named("storages", name))  # says so when there is none of this name
        items = [item for item in items if item["storage"] == name]
    session.out.table(items, USAGE_COLUMNS, "no storages")


@storage.command("retire")
@click.argument("name")
@pass_session
def retire_storage(session: Session, name: str) -> None:
    """Retire a storage that holds nothing; its files and its marker are left as they are."""
    session.client.delete(named("storages", name))
    session.out.said(f"storage {name} is retired", {"name": name})


# ------------------------------------------------------------------------------------------------------ checking


@storage.command("check")
@click.argument("name")
@click.option("--confirm-lost", is_flag=True, help="Your word that what is missing is lost, however much it is.")
@click.option("--no-checksum", is_flag=True, help="Presence and size only; no byte is read.")
@click.option("--no-wait", is_flag=True, help="Start it and return.")
@click.option(
    "--timeout", type=DURATION, default="1d", show_default=True, help="Give up watching, with exit status 75."
)
@pass_session
def check_storage(
    session: Session, name: str, confirm_lost: bool, no_checksum: bool, no_wait: bool, timeout: float
) -> None:
    """Have the auditor compare a storage with the catalogue, and watch it.

    What is missing or corrupt is declared lost or bad and repaired from a good copy. When it is more than the breaker's
    share, the check stops and declares nothing until you give --confirm-lost. Exit status 1 when it did not
    come to its end.
    """
    body = {"with_checksum": not no_checksum, "confirm_lost": confirm_lost}
    started = session.client.post(named("storages", name, "checks"), body)
    if no_wait:
        session.out.said(f"check {started['id']} of {name} is running", started)
        return
    last = watch(session, lambda: look_at_check(session.client, started["id"]), timeout, ("auditor",))
    if last.word != "done":
        raise click.exceptions.Exit(1)


def look_at_check(client: Client, number: int) -> Look:
    """How far a check is."""
    item = client.get(named("checks", number))
    if item["state"] != "running" and (item["missing"] or item["corrupt"]):
        item["found"] = client.get(named("checks", number, "found"), limit=SHOWN_FOUND)["items"]
    is_over = item["state"] != "running"
    word = "checking" if not is_over else item["state"]
    return Look(word, item["files"], item["total"], is_over=is_over, text=_told(item), facts=item)


def _told(item: Item) -> str:
    wrong = [counted(item[key], f"{key} file") for key in ("missing", "corrupt") if item[key]]
    if item["state"] == "unavailable":
        return f"unavailable  {item['storage']}: {item['message']}"
    found = ", ".join(wrong) if wrong else "all there" + (" and read" if item["with_checksum"] else "")
    text = f"{item['state']:<9} {item['storage']}: {counted(item['files'], 'file')} looked at, {found}"
    if item["state"] != "done" and item["message"]:
        text += f"\n reason   {item['message']}"  # what to do about it stands there, too
    return text + "".join(f"\n {line}" for line in _found(item))


def _found(item: Item) -> Iterator[str]:
    """The first files that were found missing or corrupt, and where the rest is told."""
    items = item.get("found", [])
    for one in items:
        yield safe(f"{one['state']:<8} {one['did']}   {one['detail'] or ''}").rstrip()
    left = item["missing"] + item["corrupt"] - len(items)
    if items and left > 0:
        all_of_them = f"   dlm-admin storage findings {item['storage']}" if item["state"] == "stopped" else ""
        yield f"{'':<9}and {left:,} more{all_of_them}"


@storage.command("findings")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many.")
@pass_session
def list_findings(session: Session, name: str, limit: int) -> None:
    """What looks wrong there and is not declared yet, oldest first."""
    items = session.client.get("/findings", storage=name, limit=limit)["items"]
    session.out.table(items, FINDING_COLUMNS, "nothing looks wrong")


# --------------------------------------------------------------------------------------------------- expressions


@click.group(cls=Noun)
def expression() -> None:
    """Which storages an expression matches."""


@expression.command("show")
@click.argument("text", metavar="EXPR")
@pass_session
def evaluate(session: Session, text: str) -> None:
    """What an expression matches now; a malformed one is told with its position."""
    item = session.client.post("/expressions", {"storages": text})
    session.out.object(item)
    names = item["storages"]
    session.out.line(f"{item['canonical']} matches {len(names)}{': ' if names else ''}{' '.join(names)}")
    for hint in item["hints"]:
        session.out.line(f" hint: {hint}")


expression.add_command(evaluate, "evaluate")
