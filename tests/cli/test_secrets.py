"""dlm-admin secret: values from files, standard input and prompts, never from arguments; keys changed on the host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Admin
from dlm.core import credentials
from dlm.db.engine import Database
from dlm.vault import Vault


def values(database: Database, name: str) -> dict[str, str]:
    with database.begin("look") as tx:
        return dict(credentials.get(tx, name))


def test_values_come_from_lines_of_standard_input_from_files_and_from_json(
    admin: Admin, database: Database, tmp_path: Path
) -> None:
    done = admin.run("secret", "add", "one", "username", "password", input="dlm\nhunter2 \n")
    assert done.stdout.startswith("secret one with password, username") and "hunter2" not in done.output
    assert values(database, "one") == {"username": "dlm", "password": "hunter2 "}
    (tmp_path / "id").write_text("-----BEGIN KEY-----\nhunter2\n-----END KEY-----\n")
    admin("secret", "add", "two", "--from", f"private_key={tmp_path / 'id'}", "--file", tmp_path / "id", status=2)
    (tmp_path / "rest.json").write_text(json.dumps({"username": "dlm"}))
    admin("secret", "add", "two", "--from", f"private_key={tmp_path / 'id'}", "--file", tmp_path / "rest.json")
    assert values(database, "two")["private_key"].startswith("-----BEGIN KEY-----\nhunter2")
    admin.run("secret", "set", "two", "--file", "-", input='{"token": "hunter3"}')
    assert values(database, "two") == {"token": "hunter3"}
    admin.run("secret", "set", "two", "--from", "token=-", input="hunter4\n")
    assert values(database, "two") == {"token": "hunter4"}


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["password=hunter2"], ""),
        (["HUNTER2"], ""),
        ([], ""),
        (["--file", "-"], '{"password": hunter2}'),
        (["--file", "-"], '["hunter2"]'),
        (["--file", "-"], '{"password": 2}'),
        (["--from", "password=/nowhere/hunter"], ""),
        (["--from", "a=-", "--from", "b=-"], "hunter2"),
        (["password"], ""),
    ],
)
def test_what_gives_no_value_is_refused_and_not_repeated(admin: Admin, words: list[str], given: str) -> None:
    status = 1 if "/nowhere" in str(words) else 2
    done = admin.run("secret", "add", "mine", *words, status=status, input=given)
    assert "hunter2" not in done.output.lower().replace("/nowhere/hunter", "")


def test_a_secret_is_listed_shown_and_removed_without_its_values(admin: Admin) -> None:
    assert "secret add" in admin("secret", "list")
    admin.run("secret", "add", "one", "token", input="hunter2\n")
    listed, shown = admin("secret", "list"), admin("secret", "show", "one")
    assert "one" in listed and "token" in listed and "hunter2" not in listed + shown
    assert "is removed" in admin("secret", "remove", "one")
    assert "no secret" in admin.error("secret", "show", "one", status=1)


def test_a_storage_is_told_options_and_shows_them(admin: Admin, tmp_path: Path) -> None:
    admin("site", "add", "perth")
    admin("storage", "add", "disk", "--site", "perth", "--path", tmp_path / "disk")
    assert "timeout_s=30" in admin("storage", "protocol", "set", "disk", "--option", "timeout_s=30")
    assert "timeout_s" not in admin("storage", "protocol", "set", "disk", "--unset", "timeout_s")
    told = admin.error("storage", "protocol", "set", "disk", "--credentials", "nobody", status=2)
    assert "no secret nobody" in told and "dlm-admin secret add nobody" in told
    assert "nothing to change" in admin.error("storage", "protocol", "set", "disk", status=2)


def test_the_key_is_changed_on_the_host(
    admin: Admin, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secrets.key"
    database.vault = Vault(str(file))
    old = database.vault.add_key()
    admin.run("secret", "add", "one", "token", input="hunter2\n")
    dsn = database.engine.url.render_as_string(hide_password=False)
    admin.environment |= {"DLM_DATABASE_DSN": dsn, "DLM_SECRETS_KEY_FILE": str(file)}
    done = admin.json("secret", "rotate", "--drop-old")
    assert (done["secrets"], done["dropped"], done["key_file"]) == (1, [old], str(file))
    assert admin.json("secret", "show", "one")["key_id"] == done["key_id"] != old
    assert values(database, "one") == {"token": "hunter2"}
