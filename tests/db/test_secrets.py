"""Secrets in the database: encrypted, named by storages, encrypted anew under another key while everything goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catalogue import Beside, fill, last_event, new_storage, wait_until_blocked
from dlm.cli.secrets import rotated
from dlm.core import credentials, roots, secrets, storages
from dlm.db import audits
from dlm.db.engine import SYSTEM, Database
from dlm.errors import Conflict, Denied, InvalidInput, NotFound, StorageError
from dlm.protocols import open_protocol
from dlm.types import Identity
from dlm.vault import Vault

VALUES = {"username": "dlm", "password": "seeded-hunter2"}
OPERATOR = Identity(1, "ann", frozenset({"operator"}))


@pytest.fixture
def database(database: Database, tmp_path: Path) -> Iterator[Database]:
    fill(database, tmp_path)
    database.vault = Vault(str(tmp_path / "secrets.key"))
    with database.begin("key") as tx:
        secrets.ensure_key(tx)
    yield database


def add(database: Database, *names: str, actor: Identity = SYSTEM) -> None:
    with database.begin("add", actor) as tx:
        for name in names:
            secrets.add_secret(tx, name, VALUES)


def speak(database: Database, storage: str, secret: str | None, scheme: str = "davs", actor: Identity = SYSTEM) -> None:
    """Have the storage speak that scheme, as if it had been added so, with the secret."""
    with database.begin("speak", actor) as tx:
        tx.run(
            """UPDATE protocol SET scheme = %(scheme)s
                WHERE storage_id = (SELECT id FROM storage WHERE name = %(storage)s)""",
            scheme=scheme,
            storage=storage,
        )
        storages.update_protocol(tx, storage, scheme, {"credentials": secret})


def by_name(database: Database) -> dict[str, Any]:
    with database.begin("refs") as tx:
        return {ref.storage_name: ref for ref in credentials.refs(tx).values()}


def everything(database: Database) -> str:
    """All that stands in the tables where somebody could look for a value."""
    with database.begin("dump") as tx:
        rows = tx.rows("SELECT to_jsonb(e) AS r FROM event e UNION ALL SELECT to_jsonb(s) FROM secret s")
    return json.dumps([row.r for row in rows])


# ------------------------------------------------------------------------------------------------ use cases


def test_a_secret_is_added_told_of_set_and_removed_and_no_event_has_its_values(database: Database) -> None:
    with database.begin("test", OPERATOR) as tx:
        made = secrets.add_secret(tx, "perth-dav", VALUES)
        assert (made.owner, made.keys, made.version, made.storages) == ("ann", ["password", "username"], 1, [])
        assert last_event(tx).after == {"name": "perth-dav", "keys": made.keys, "key_id": made.key_id}
        assert credentials.get(tx, "perth-dav") == VALUES
        again = secrets.set_secret(tx, "perth-dav", {"token": "seeded-token"})
        assert (again.keys, again.version) == (["token"], 2)
        assert credentials.get(tx, "perth-dav") == {"token": "seeded-token"}
        assert [row.name for row in secrets.list_secrets(tx)[0]] == ["perth-dav"]
    assert "seeded" not in everything(database)
    with database.begin("test") as tx:
        secrets.remove_secret(tx, "perth-dav")
        assert (last_event(tx).object, last_event(tx).action) == ("secret", "removed")
        with pytest.raises(NotFound):
            credentials.get(tx, "perth-dav")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"hunter2 is mine": "x"},
        {"Hunter2": "x"},
        {"password": ""},
        {"password": "hunter2" * 10_000},
        {"password": "hunter2\x00"},
        {"password": "hunter2\ud800"},
        {"password": "hunter2\nX-Other: hunter2"},
        {"token": "hunter2\r\nX-Other: hunter2"},
        {"token": "hunter2ł"},
        {"secret_key": "hunter2 "},
        {f"key{number}": "hunter2" for number in range(17)},
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(database: Database, values: dict[str, str]) -> None:
    with database.begin("test") as tx, pytest.raises(InvalidInput) as caught:
        secrets.add_secret(tx, "mine", values)
    assert "hunter2" not in f"{caught.value}{caught.value.hint}{caught.value.field}".lower()


def test_a_name_is_taken_once_and_a_wrong_one_gets_a_hint(database: Database) -> None:
    add(database, "perth-dav")
    with database.begin("test") as tx:
        with pytest.raises(Conflict, match="exists already"):
            secrets.add_secret(tx, "perth-dav", VALUES)
        with pytest.raises(NotFound) as caught:
            secrets.set_secret(tx, "perth-davs", VALUES)
        assert caught.value.hint == "Did you mean 'perth-dav'?"


def test_without_a_key_nothing_is_kept(database: Database) -> None:
    database.vault = Vault()
    with database.begin("test") as tx, pytest.raises(Conflict, match="no key") as caught:
        secrets.add_secret(tx, "perth-dav", VALUES)
    assert "db init" in (caught.value.hint or "")


# ---------------------------------------------------------------------------------------- named by storages


def test_a_storage_names_only_a_secret_that_is_there_and_lets_it_in(database: Database) -> None:
    add(database, "perth-dav")
    with pytest.raises(InvalidInput, match="no secret perth-dev") as caught:
        speak(database, "perth-disk", "perth-dev")
    assert (caught.value.field, caught.value.hint) == ("credentials", "Did you mean 'perth-dav'?")
    with pytest.raises(InvalidInput, match="s3 needs access_key and secret_key"):
        speak(database, "perth-disk", "perth-dav", scheme="s3")
    with pytest.raises(InvalidInput, match="posix needs no credentials"):
        speak(database, "perth-disk", "perth-dav", scheme="posix")
    speak(database, "perth-disk", "perth-dav")
    assert by_name(database)["perth-disk"].secret == VALUES
    with database.begin("test") as tx, pytest.raises(InvalidInput, match="davs needs token"):
        secrets.set_secret(tx, "perth-dav", {"access_key": "a", "secret_key": "b"})


def test_a_new_storage_with_an_unknown_secret_is_refused_before_its_root_is_touched(
    database: Database, tmp_path: Path
) -> None:
    new = new_storage("new", tmp_path / "new")
    new = replace(new, protocols=[replace(new.protocols[0], credentials="nobody")])
    with pytest.raises(InvalidInput, match="no secret nobody") as caught:
        roots.add_storage(database.begin, new)
    assert caught.value.field == "protocols[0].credentials"
    assert not (tmp_path / "new").exists()


def test_who_may_add_storages_may_not_have_another_s_secret_sent_to_an_address_of_their_own(
    database: Database,
) -> None:
    add(database, "root-dav")
    add(database, "ann-dav", actor=OPERATOR)
    with pytest.raises(Denied):
        speak(database, "perth-disk", "root-dav", actor=OPERATOR)
    speak(database, "perth-disk", "ann-dav", actor=OPERATOR)
    speak(database, "perth-disk", "root-dav")
    with database.begin("test", OPERATOR) as tx, pytest.raises(Denied):
        storages.update_protocol(tx, "perth-disk", "davs", {"options": {"timeout_s": "5"}})


def test_a_secret_in_use_is_not_removed_and_one_that_only_a_retired_storage_named_is(database: Database) -> None:
    add(database, "perth-dav")
    speak(database, "perth-vault", "perth-dav")
    with database.begin("test") as tx, pytest.raises(Conflict, match="named by perth-vault"):
        secrets.remove_secret(tx, "perth-dav")
    with database.begin("test") as tx:
        assert secrets.get_secret(tx, "perth-dav").storages == ["perth-vault"]
        storages.retire_storage(tx, "perth-vault")
        secrets.remove_secret(tx, "perth-dav")


def test_of_naming_and_removing_a_secret_at_once_only_one_happens(database: Database) -> None:
    """1. removal holds the row and sees no storage that names it; 2. a storage comes to name it; 3. the secret goes."""
    add(database, "perth-dav")
    with database.begin("remove") as tx:
        secrets.remove_secret(tx, "perth-dav")
        naming = Beside(lambda: speak(database, "perth-disk", "perth-dav"))
        wait_until_blocked(database)
    assert naming.finish() == [InvalidInput]
    add(database, "perth-dav")
    with database.begin("name") as tx:
        credentials.require(tx, "davs", "perth-dav")
        tx.run("UPDATE protocol SET scheme = 'davs', credentials = 'perth-dav' WHERE storage_id = 1")

        def remove() -> None:
            with database.begin("remove") as other:
                secrets.remove_secret(other, "perth-dav")

        removing = Beside(remove)
        wait_until_blocked(database)
    assert removing.finish() == [Conflict]


# ------------------------------------------------------------------------------------------------- opened


def test_refs_open_each_secret_and_take_two_statements_for_any_number(database: Database, tmp_path: Path) -> None:
    add(database, *(f"s{number}" for number in range(12)))
    for number in range(10):
        roots.add_storage(database.begin, new_storage(f"n{number}", tmp_path / f"n{number}"))
    for number in range(10):
        speak(database, f"n{number}", f"s{number}")
    with database.begin("refs") as tx:
        refs = credentials.refs(tx)
        assert tx.statements == 2
    assert sum(ref.secret == VALUES for ref in refs.values()) == 10
    assert {ref.secret for ref in refs.values() if ref.credentials is None} == {None}


def test_a_storage_is_looked_at_soon_after_its_secret_was_set(database: Database) -> None:
    add(database, "perth-dav")
    speak(database, "perth-disk", "perth-dav")
    for _ in range(2):
        with database.begin("look") as tx:
            audits.claim_looks(tx, 60)
            assert audits.claim_looks(tx, 60) == []
        with database.begin("set") as tx:
            secrets.set_secret(tx, "perth-dav", VALUES)
        with database.begin("look") as tx:
            assert audits.claim_looks(tx, 60) == [storages.get_storage(tx, "perth-disk").id]


def test_a_reference_changes_when_its_secret_is_set_and_not_when_it_is_rotated(database: Database) -> None:
    add(database, "perth-dav")
    speak(database, "perth-disk", "perth-dav")
    first = by_name(database)["perth-disk"]
    rotated(database, drop_old=True)
    assert by_name(database)["perth-disk"] == first
    with database.begin("set") as tx:
        secrets.set_secret(tx, "perth-dav", VALUES)
    assert by_name(database)["perth-disk"] != first


def test_a_secret_that_cannot_be_had_makes_its_storage_unavailable_and_no_other(
    database: Database, tmp_path: Path
) -> None:
    add(database, "perth-dav", "other-dav")
    speak(database, "perth-disk", "perth-dav")
    speak(database, "perth-vault", "other-dav")

    def reason(storage: str = "perth-disk") -> str:
        with pytest.raises(StorageError) as caught:
            open_protocol(by_name(database)[storage])
        assert caught.value.error_class == "unavailable"
        return caught.value.detail

    with database.begin("swap") as tx:
        tx.run(
            "UPDATE secret SET ciphertext = (SELECT ciphertext FROM secret WHERE name = 'other-dav')"
            " WHERE name = 'perth-dav'"
        )
    assert "its row was changed, or belongs to another" in reason()
    assert by_name(database)["perth-vault"].secret == VALUES
    keys = tmp_path / "secrets.key"
    keys.rename(tmp_path / "elsewhere")
    assert "which is not in" in reason("perth-vault")
    keys.touch(0o600)
    keys.write_text("nonsense hunter2\n")
    assert "line 1 is no key" in reason("perth-vault") and "hunter2" not in reason("perth-vault")
    keys.unlink()
    (tmp_path / "elsewhere").rename(keys)
    assert by_name(database)["perth-vault"].secret == VALUES, "it goes on by itself"


# ------------------------------------------------------------------------------------------------ rotating


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "BATCH", 3)


@pytest.mark.usefixtures("small_batches")
def test_all_secrets_go_under_a_new_key_in_batches_and_the_old_one_may_then_go(database: Database) -> None:
    names = [f"s{number}" for number in range(10)]
    add(database, *names)
    old = database.vault.key_ids()
    done = rotated(database, drop_old=False)
    assert (done["secrets"], done["unreadable"]) == (10, [])
    assert database.vault.key_ids() == [done["key_id"], *old]
    with database.begin("look") as tx:
        assert {row.key_id for row in secrets.list_secrets(tx)[0]} == {done["key_id"]}
        assert all(row.rotated_at is not None and row.version == 1 for row in secrets.list_secrets(tx)[0])
    last = rotated(database, drop_old=True)
    assert last["dropped"] == [done["key_id"], *old]
    assert database.vault.key_ids() == [last["key_id"]]
    with database.begin("look") as tx:
        assert all(credentials.get(tx, name) == VALUES for name in names)


@pytest.mark.usefixtures("small_batches")
def test_a_rotation_that_was_interrupted_is_finished_under_the_same_key(database: Database) -> None:
    names = [f"s{number}" for number in range(8)]
    add(database, *names)
    with database.begin("begin") as tx:
        key_id = secrets.begin_rotation(tx)
    with database.begin("batch") as tx:
        assert secrets.rotate_batch(tx).secrets == 3
        assert tx.statements == 3
    with database.begin("midway") as tx:
        assert all(credentials.get(tx, name) == VALUES for name in names), "both keys read meanwhile"
        with pytest.raises(Conflict, match="still encrypted under older keys"):
            secrets.drop_keys(tx)
    done = rotated(database, drop_old=False)
    assert (done["key_id"], done["secrets"]) == (key_id, 5)
    assert len(database.vault.key_ids()) == 2


def test_what_cannot_be_read_is_left_named_and_holds_up_nothing(database: Database) -> None:
    add(database, "a", "b", "c")
    with database.begin("break") as tx:
        tx.run("UPDATE secret SET ciphertext = '\\x00' WHERE name = 'b'")
    done = rotated(database, drop_old=True)
    assert (done["secrets"], done["unreadable"], done["dropped"]) == (2, ["b"], [])


def test_secrets_whose_key_is_elsewhere_are_not_left_behind(database: Database, tmp_path: Path) -> None:
    add(database, "a")
    (tmp_path / "secrets.key").unlink()
    with pytest.raises(Conflict, match="which is not in"):
        rotated(database, drop_old=True)
    with database.begin("init") as tx:
        assert secrets.ensure_key(tx) is None
    assert not (tmp_path / "secrets.key").exists(), "a second key would hide that the first is missing"


def test_keys_of_the_environment_are_changed_there_and_rotated_here(database: Database) -> None:
    first, second = "A" * 43, "B" * 42 + "A"
    database.vault = Vault(text=first)
    add(database, "a")
    assert rotated(database, drop_old=False)["secrets"] == 0
    database.vault = Vault(text=f"{second},{first}")
    done = rotated(database, drop_old=False)
    assert (done["secrets"], done["key_id"]) == (1, database.vault.key_ids()[0])
    database.vault = Vault(text=second)
    with database.begin("look") as tx:
        assert credentials.get(tx, "a") == VALUES


def test_a_secret_that_is_set_while_the_keys_change_is_under_a_key_that_stays(database: Database) -> None:
    """1. a service reads the keys; 2. they are changed, and the old one dropped; 3. it writes under the old one."""
    add(database, "a")

    def renew() -> None:
        with database.begin("set") as other:
            secrets.set_secret(other, "a", {"token": "new"})

    with database.begin("keys") as tx:
        key_id = secrets.begin_rotation(tx)
        setting = Beside(renew)
        wait_until_blocked(database)
    assert setting.finish() == []
    with database.begin("look") as tx:
        assert secrets.get_secret(tx, "a").key_id == key_id
