"""Connections that rested are asked whether they live; those in use a moment ago are not."""

from __future__ import annotations

import pytest

from dlm.db import engine
from dlm.db.engine import Database


def pid_of(database: Database) -> int:
    with database.begin("test.pid") as tx:
        return int(tx.scalar("SELECT pg_backend_pid()"))


def end(dsn: str, pid: int) -> None:
    """End another session, and wait until it is gone."""
    killer = Database(dsn)
    with killer.begin("test.end") as tx:
        tx.run("SELECT pg_terminate_backend(%(pid)s, 10000)", pid=pid)
    killer.dispose()


def test_a_connection_that_died_while_it_rested_is_replaced(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PING_AFTER_S", 0.0)
    before = pid_of(database)
    end(database.dsn, before)
    assert pid_of(database) != before


def test_a_connection_in_use_a_moment_ago_is_taken_as_it_is(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PING_AFTER_S", 3600.0)
    before = pid_of(database)

    def never(*_: object) -> bool:
        raise AssertionError("it was asked")

    monkeypatch.setattr(database.engine.dialect, "do_ping", never)
    assert pid_of(database) == before
