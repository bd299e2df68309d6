"""dlm-daemon: runs one daemon, several, or all in one process, until it is told to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

import click

from dlm import config, effects, exits, logs
from dlm.config import Settings
from dlm.daemons import loop
from dlm.daemons.auditor import Auditor
from dlm.daemons.conveyor import Conveyor
from dlm.daemons.judge import Judge
from dlm.daemons.loop import Daemon, Pass
from dlm.daemons.reaper import Reaper
from dlm.db import daemons as daemon_rows
from dlm.db import migrate
from dlm.db.engine import Database
from dlm.db.opening import open_database, revisions
from dlm.errors import Conflict, DlmError, InvalidInput, Transient

log = logging.getLogger("dlm.daemon")

ALL = "all"
DATABASE_TIMEOUT_S = 5.0
Make = Callable[[Database, Settings, threading.Event], Daemon]

DAEMONS: dict[str, Make] = {
    "judge": lambda database, settings, stop: Judge(database, settings),
    "conveyor": lambda database, settings, stop: Conveyor(database, settings, stop.is_set),
    "reaper": lambda database, settings, stop: Reaper(database, settings),
    "auditor": lambda database, settings, stop: Auditor(database, settings),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="NAME…|all")
@click.option("--once", is_flag=True, help="One pass of each, then leave; prints what it did.")
@click.option("--dry-run", is_flag=True, help="With --once: decide as usual, write nothing, touch nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --once: one JSON object a line.")
@click.option("--config", "path", metavar="FILE", help="Settings from this file.")
@click.option("--set", "flags", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
@click.version_option(package_name="dlm", prog_name="dlm-daemon", message="%(prog)s %(version)s")
def cli(names: Sequence[str], once: bool, dry_run: bool, as_json: bool, path: str | None, flags: Sequence[str]) -> None:
    """Run daemons: judge, conveyor, reaper, auditor, or all of them.

    They only connect to the database, and wait while it is away. Any number of processes may run the same daemon.
    SIGTERM or Ctrl-C lets the batch at hand end. Exit status: 0 done, 1 failed, 2 wrong input, 75 try again later.
    """
    try:
        if dry_run and not once:
            raise InvalidInput("--dry-run goes with --once", field="dry-run")
        chosen = choose(names)
        settings = config.load(path, flags=config.flags_of(flags))
        config.forget_secrets()
        logs.configure(settings)
        effects.install_from_environment()
        stop = stopped_by_signals()
        database = open_database(settings)
        daemons = [DAEMONS[name](database, settings, stop) for name in chosen]
        try:
            _run_once(daemons, database, dry_run, as_json) if once else _run(daemons, database, stop)
        finally:
            database.dispose()
    except DlmError as error:
        click.echo(exits.told_as_json(error) if as_json else exits.told(error), err=True)
        sys.exit(exits.status_of(error))


def choose(names: Iterable[str]) -> list[str]:
    """The daemons that are meant, each once, in the order in which work flows; InvalidInput for a name that is none."""
    wanted = set(names)
    if not wanted:
        raise InvalidInput("say which daemon", field="name", hint=f"one or more of {', '.join(DAEMONS)}, or all")
    for name in sorted(wanted - DAEMONS.keys() - {ALL}):
        raise InvalidInput(f"there is no daemon {name!r}", field="name", hint=f"one of {', '.join(DAEMONS)}, or all")
    return [name for name in DAEMONS if name in wanted or ALL in wanted]


def stopped_by_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _run(daemons: Sequence[Daemon], database: Database, stop: threading.Event) -> None:
    if not wait_for_schema(database, stop):
        return
    log.info("started: %s", " ".join(daemon.name for daemon in daemons))
    try:
        loop.run(list(daemons), database, stop)
    finally:
        for daemon in daemons:
            _finish(daemon)
    with contextlib.suppress(Transient), database.begin("daemon.ended") as tx:
        daemon_rows.forget(tx, [daemon.name for daemon in daemons], socket.gethostname(), os.getpid())
    log.info("stopped")


def _run_once(daemons: Sequence[Daemon], database: Database, dry_run: bool, as_json: bool) -> None:
    database.wait_until_up(DATABASE_TIMEOUT_S)
    check_schema(database)
    for daemon in daemons:
        done = daemon.run_once(dry_run=dry_run)
        done.merge(_finish(daemon))
        click.echo(_shown(daemon.name, done, dry_run, as_json))


def _finish(daemon: Daemon) -> Pass:
    """Record what the daemon still has in the air; only a conveyor's work outlasts a pass."""
    return daemon.finish() if isinstance(daemon, Conveyor) else Pass()


def _shown(name: str, done: Pass, dry_run: bool, as_json: bool) -> str:
    if as_json:
        return json.dumps({"daemon": name, "counts": done.counts, "is_full": done.is_full, "dry_run": dry_run})
    counts = " ".join(f"{key} {number:,}" for key, number in done.counts.items()) or "nothing to do"
    return f"{name:<9} {counts}{' · more waits' if done.is_full else ''}{'  (dry run: nothing was written)' if dry_run else ''}"


def wait_for_schema(database: Database, stop: threading.Event) -> bool:
    """True once the database answers and has this code's schema; False when told to stop before."""
    while not stop.is_set():
        try:
            database.wait_until_up(0)
            check_schema(database)
            return True
        except Transient as error:
            log.warning("waiting for the database: %s", error)
            stop.wait(loop.DATABASE_PAUSE_S)
    return False


def check_schema(database: Database) -> None:
    """Conflict when the database has not the schema that this code needs; months to come get their partitions."""
    have, need = revisions(database.dsn)
    if have != need:
        raise Conflict(
            f"the database is at revision {have or 'none'}, this program needs {need}", hint="dlm-admin db upgrade"
        )
    with database.begin("daemon.partitions") as tx:
        migrate.ensure_partitions(tx, tx.now)


def main() -> None:
    cli.main(prog_name="dlm-daemon")


if __name__ == "__main__":
    main()
