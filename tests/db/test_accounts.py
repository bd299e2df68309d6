"""Accounts, tokens, scopes and limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalogue import fill, last_event
from dlm.clock import ManualClock
from dlm.core import accounts
from dlm.db import usage
from dlm.db.engine import Database
from dlm.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from dlm.types import Page


@pytest.fixture
def database(database: Database, tmp_path: Path) -> Database:
    fill(database, tmp_path)
    return database


def test_an_account_is_added_listed_and_updated(database: Database) -> None:
    with database.begin("test") as tx:
        accounts.add_account(tx, "bob", "service", roles=["reader"])
        accounts.update_account(tx, "bob", roles=["admin", "reader"])
        event = last_event(tx)
        assert (event.action, event.before["roles"], event.after["roles"]) == (
            "updated",
            ["reader"],
            ["admin", "reader"],
        )
        rows, cursor = accounts.list_accounts(tx, Page(limit=1))
        assert ([row.name for row in rows], cursor) == (["ann"], "ann")
        rows, cursor = accounts.list_accounts(tx, Page(limit=5, after=cursor))
        assert ([row.name for row in rows], cursor) == (["bob"], None)


def test_ensuring_an_account_makes_it_once_and_changes_nothing_afterwards(database: Database) -> None:
    with database.begin("test") as tx:
        first = accounts.ensure_account(tx, "root", "service", ["admin"])
        assert accounts.ensure_account(tx, "root", "person", []).roles == first.roles == ["admin"]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a" * 65, "a/b", "é", "a\n"])
def test_a_name_that_cannot_stand_in_an_expression_is_refused(database: Database, name: str) -> None:
    with database.begin("test") as tx, pytest.raises(InvalidInput):
        accounts.add_account(tx, name)


def test_a_name_is_used_once_even_after_the_account_is_closed(database: Database) -> None:
    with database.begin("test") as tx:
        accounts.close_account(tx, "ann")
        with pytest.raises(Conflict):
            accounts.add_account(tx, "ann")
        with pytest.raises(Conflict, match="closed"):
            accounts.update_account(tx, "ann", roles=["admin"])


def test_a_token_says_who_acts_and_only_its_hash_is_kept(database: Database) -> None:
    with database.begin("test") as tx:
        accounts.update_account(tx, "ann", roles=["admin"])
        text, row = accounts.make_token(tx, "ann", "laptop")
        assert text.startswith("dlm_") and len(text) == 47
        identity = accounts.identify(tx, text, "req-1")
        assert (identity.account, identity.roles, identity.request_id) == ("ann", frozenset({"admin"}), "req-1")
        stored = tx.one("SELECT t.*, t.hash::text AS shown FROM token t")
        assert stored is not None and text not in str(stored)
        assert [token.id for token in accounts.list_tokens(tx, "ann")] == [row.id]


def test_a_token_ends_by_time_by_revocation_and_with_its_account(database: Database, clock: ManualClock) -> None:
    with database.begin("test") as tx:
        short, _ = accounts.make_token(tx, "ann", lifetime_s=60)
        revoked, row = accounts.make_token(tx, "ann")
        closed, _ = accounts.make_token(tx, "ann")
        accounts.revoke_token(tx, row.id)
        accounts.revoke_token(tx, row.id)
        assert accounts.identify(tx, short).account == "ann"
    clock.advance(60)
    with database.begin("test") as tx:
        accounts.close_account(tx, "ann")
        for text in (short, revoked, closed):
            with pytest.raises(Unauthenticated):
                accounts.identify(tx, text)


@pytest.mark.parametrize("text", ["", "dlm_", "dlm_" + "a" * 43, "x" * 47, "dlm_" + "é" * 43, "dlm_" + "a" * 100_000])
def test_what_is_no_token_is_refused_with_the_same_words(database: Database, text: str) -> None:
    with database.begin("test") as tx, pytest.raises(Unauthenticated, match="the token is not valid"):
        accounts.identify(tx, text)


def test_a_scope_has_an_owner_and_is_made_once(database: Database) -> None:
    with database.begin("test") as tx:
        assert accounts.get_scope(tx, "demo").account == "ann"
        with pytest.raises(Conflict):
            accounts.add_scope(tx, "demo", "ann")
        with pytest.raises(NotFound, match="no scope 'nope'"):
            accounts.get_scope(tx, "nope")
        with pytest.raises(InvalidInput):
            accounts.add_scope(tx, "a:b", "ann")
        assert [row.name for row in accounts.list_scopes(tx)[0]] == ["demo"]


def test_a_limit_is_set_changed_and_taken_away(database: Database) -> None:
    with database.begin("test") as tx:
        for limit in (10, 20, None):
            accounts.set_limit(tx, "ann", "perth-disk", limit)
            (row,) = usage.accounts(tx)
            assert (row.storage, row.limit_bytes, row.charged_bytes) == ("perth-disk", limit, 0)
        event = last_event(tx)
        assert (event.before["limit_bytes"], event.after["limit_bytes"]) == (20, None)
        with pytest.raises(InvalidInput):
            accounts.set_limit(tx, "ann", "perth-disk", -1)
        with pytest.raises(NotFound):
            accounts.set_limit(tx, "ann", "nowhere", 1)
