"""Keys and what is sealed with them: what opens, what does not, and what is never shown."""

from __future__ import annotations

import base64
import errno
import os
import pickle
import traceback
from pathlib import Path

import pytest

from dlm.config import Settings, flags_of
from dlm.errors import Conflict, InvalidInput
from dlm.types import ProtocolRef, Secret
from dlm.vault import Sealed, Vault, key_id

VALUES = {"access_key": "AKSEEDED", "secret_key": "hunter2-ünïcode\nwith lines"}
OLD, NEW = base64.b64encode(b"o" * 32).decode(), base64.b64encode(b"n" * 32).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "secrets.key"


def test_what_is_sealed_opens_and_each_time_looks_different() -> None:
    ring = Vault(text=NEW).ring()
    first, second = ring.seal("s3", VALUES), ring.seal("s3", VALUES)
    assert ring.open("s3", first) == ring.open("s3", second) == VALUES
    assert first.ciphertext != second.ciphertext
    assert b"hunter2" not in first.ciphertext and b"secret_key" not in first.ciphertext


def test_a_row_that_was_moved_under_another_name_or_changed_does_not_open() -> None:
    ring = Vault(text=NEW).ring()
    sealed = ring.seal("mine", VALUES)
    turned = bytes([sealed.ciphertext[-1] ^ 1])
    for name, row in [
        ("theirs", sealed),
        ("mine", Sealed(sealed.key_id, sealed.ciphertext[:-1] + turned)),
        ("mine", Sealed(sealed.key_id, b"")),
    ]:
        with pytest.raises(Conflict, match="cannot be decrypted"):
            ring.open(name, row)


def test_the_first_key_encrypts_and_all_of_them_decrypt() -> None:
    before = Vault(text=OLD).ring().seal("s3", VALUES)
    both = Vault(text=f"{NEW}, {OLD}").ring()
    assert both.open("s3", before) == VALUES
    assert both.seal("s3", VALUES).key_id == key_id(b"n" * 32) != before.key_id
    with pytest.raises(Conflict, match=f"under key {before.key_id}, which is not in DLM_SECRETS_KEY"):
        Vault(text=NEW).ring().open("s3", before)


def test_without_a_key_nothing_is_sealed() -> None:
    with pytest.raises(Conflict, match="no key"):
        Vault().ring().seal("s3", VALUES)


def test_a_new_key_stands_first_in_a_file_that_only_its_owner_reads(file: Path) -> None:
    vault = Vault(str(file))
    first = vault.add_key()
    assert file.stat().st_mode & 0o777 == 0o600
    second = vault.add_key()
    assert vault.key_ids() == [second, first]
    assert vault.drop_keys() == [first] and vault.key_ids() == [second]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_new_key_is_on_the_disk_before_anything_is_sealed_with_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", recording)
    vault = Vault(str(file))
    vault.add_key()
    assert synced[0].startswith(str(file)) and synced[1:] == [str(file.parent), str(file.parent.parent)]
    synced.clear()
    vault.drop_keys()
    assert synced[1:] == [str(file.parent)]


def test_what_a_killed_process_left_is_in_nobodys_way_and_goes(file: Path) -> None:
    vault = Vault(str(file))
    first = vault.add_key()
    for name in (f"secrets.key.{os.getpid()}.new", "secrets.key.0a1b.new", "secrets.key.mine.new", ".0a1b.new"):
        (file.parent / name).write_text(NEW)
    second = vault.add_key()
    assert vault.key_ids() == [second, first]
    assert {path.name for path in file.parent.iterdir()} == {"secrets.key", "secrets.key.mine.new", ".0a1b.new"}


def test_a_file_that_cannot_be_written_is_told_and_stays_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    vault = Vault(str(file))
    first = vault.add_key()
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(Conflict, match="cannot be written: No space left") as caught:
        vault.add_key()
    assert caught.value.field == "secrets_key_file"
    assert vault.key_ids() == [first] and [path.name for path in file.parent.iterdir()] == [file.name]


def test_who_else_may_read_the_file_of_keys_stays_as_it_was(file: Path) -> None:
    vault = Vault(str(file))
    vault.add_key()
    file.chmod(0o640)
    vault.add_key()
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_key_that_is_put_into_the_file_counts_at_once(file: Path) -> None:
    reading, writing = Vault(str(file)), Vault(str(file))
    assert reading.key_ids() == []
    made = writing.add_key()
    assert reading.key_ids() == [made]


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    vault = Vault(str(file))
    vault.add_key()
    file.chmod(0o604)
    with pytest.raises(Conflict, match="open to others"):
        vault.ring()


def test_comments_blank_lines_and_both_spellings_of_base64_are_read(file: Path) -> None:
    file.parent.mkdir()
    url_safe = base64.urlsafe_b64encode(b"\xff" * 32).decode().rstrip("=")
    file.write_text(f"# mine\n\n{NEW}  # 2026\n{url_safe}\n")
    file.chmod(0o600)
    assert Vault(str(file)).key_ids() == [key_id(b"n" * 32), key_id(b"\xff" * 32)]


@pytest.mark.parametrize("text", ["c2hvcnQ=", "not base64 at all but secret", NEW[:-5], "ü" * 43])
def test_what_is_no_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(Conflict, match="DLM_SECRETS_KEY, line 2 is no key") as caught:
        Vault(text=f"{NEW}\n{text}").ring()
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
    assert text not in told and NEW not in told


def test_nothing_that_holds_a_secret_shows_it() -> None:
    secret = Secret(VALUES)
    ref = ProtocolRef(1, "perth", "uuid", "s3", "https://host/b", "site-s3", {"region": "eu"}, secret, 3)
    vault = Vault(text=NEW)
    for holder in (secret, ref, vault, vault.ring(), vault.ring().seal("s3", VALUES), [secret], {"s": secret}):
        shown = f"{holder!r} {holder!s} {holder}"
        assert "hunter2" not in shown and "AKSEEDED" not in shown and NEW not in shown
    with pytest.raises(KeyError) as caught:
        secret["token"]
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert pickle.loads(pickle.dumps(secret)) == VALUES, "a worker process is handed it through a pipe"


def test_references_differ_when_their_secret_was_set_anew_and_never_by_its_values() -> None:
    one = ProtocolRef(1, "perth", "uuid", "s3", "https://host/b", "site-s3", {}, Secret({"token": "a"}), 1)
    same = ProtocolRef(1, "perth", "uuid", "s3", "https://host/b", "site-s3", {}, Secret({"token": "b"}), 1)
    later = ProtocolRef(1, "perth", "uuid", "s3", "https://host/b", "site-s3", {}, Secret({"token": "a"}), 2)
    assert one == same and hash(one) == hash(same) and one != later


def test_settings_do_not_show_what_is_secret_in_them() -> None:
    dsn = "postgresql+psycopg://dlm:hunter2@host/dlm"
    shown = repr(Settings(secrets_key=NEW, client_token="dlm_hunter2", database_dsn=dsn))
    assert "hunter2" not in shown and NEW not in shown


def test_keys_are_not_taken_from_a_flag_which_everybody_on_the_host_sees() -> None:
    with pytest.raises(InvalidInput, match="not given as a flag") as caught:
        flags_of([f"secrets.key={NEW}"])
    assert NEW not in str(caught.value)
