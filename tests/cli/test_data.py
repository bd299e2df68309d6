"""DIDs, files registered in place, and a user's own bytes in and out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Admin
from dlm import did as codec
from world import World


@pytest.fixture
def pictures(admin: Admin, tmp_path: Path) -> Path:
    """A directory with files that someone else owns, as the storage `pictures` to which nothing is written."""
    place = tmp_path / "pictures"
    for number in range(12):
        file = place / f"20{number:02}" / "harbour.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(os.urandom(100 * number))
    (place / "link").symlink_to("/etc/passwd")
    admin("site", "add", "perth")
    words = ("storage", "add", "pictures", "--site", "perth", "--path", place, "--type", "source")
    admin(*words, "--write", "off", "--delete", "off", "--reason", "the originals")
    return place


@pytest.fixture
def shelf(admin: Admin, world: World) -> Path:
    """A storage that takes data."""
    return world.add_storage("shelf", "bern")


def seen(place: Path) -> dict[str, tuple[int, int]]:
    """Every path below, with its size and time of change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [place, *place.rglob("*")]}


def test_files_are_registered_where_they_are_and_nothing_there_changes(
    admin: Admin, pictures: Path, world: World
) -> None:
    before = seen(pictures)
    text = admin("did", "register", pictures, "--storage", "pictures", "--dataset", "demo:pictures")
    assert "12 files, 6.6 kB at pictures, registered in place as demo:pictures" in text
    assert "1 link or special file left out" in text
    assert seen(pictures) == before
    shown = admin.json("did", "show", "demo:2003/harbour.jpg")
    assert shown["adler32"] and shown["replicas"][0]["path"] == "2003/harbour.jpg"
    assert len(admin.lines("did", "ls", "demo:pictures")) == 12
    world.check()


def test_registering_again_takes_what_is_new(admin: Admin, pictures: Path) -> None:
    words = ("did", "register", pictures, "--storage", "pictures", "--dataset", "demo:pictures")
    admin(*words)
    (pictures / "new.jpg").write_bytes(b"new")
    done = admin.json(*words)
    assert (done["files"], done["new_replicas"], done["attached"]) == (13, 1, 1)


def test_all_bad_names_are_told_at_once_and_nothing_is_left_behind_unless_they_are_left_out(
    admin: Admin, pictures: Path
) -> None:
    for number in range(11):
        (pictures / f"{number} \x07").write_bytes(b"a bell")
    (pictures / "cafe\u0301").write_bytes(b"two parts")
    words = ("did", "register", pictures, "--storage", "pictures", "--dataset", "demo:pictures")
    error = admin.error(*words, status=2)
    assert error.count("control") == 10 and " and 2 more" in error
    assert "12 of 24 files cannot be registered" in error and "--skip-bad-names" in error and "rename" in error
    assert "is not registered" in admin.error("did", "show", "demo:pictures", status=1)
    text = admin(*words, "--skip-bad-names")
    assert "12 files, " in text and "12 files left out for a name that dlm cannot take" in text


def test_a_list_of_files_is_registered_under_names_of_ones_own(admin: Admin, pictures: Path) -> None:
    admin("scope", "add", "demo")
    file = pictures / "2001" / "harbour.jpg"
    words = ("did", "register", file, "--storage", "pictures", "--scope", "demo", "--prefix", "old/", "--no-checksum")
    assert admin.json(*words)["files"] == 1
    assert admin.json("did", "show", "demo:old/harbour.jpg")["adler32"] is None


def test_only_what_is_below_the_root_can_be_registered_there(admin: Admin, pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    words = ("--storage", "pictures", "--dataset", "demo:x")
    assert "is not below" in admin.error("did", "register", other, *words, status=2)
    (pictures / "empty").mkdir()
    assert "no files" in admin.error("did", "register", pictures / "empty", *words, status=1)
    assert "no scope" in admin.error("did", "register", pictures, "--storage", "pictures", status=2)


def test_datasets_and_containers_are_made_filled_closed_and_ended(admin: Admin, pictures: Path) -> None:
    admin("did", "register", pictures, "--storage", "pictures", "--dataset", "demo:a")
    admin("did", "add", "demo:b", "--meta", "run=7", "--meta", "telescope=low")
    admin("did", "add", "demo:all", "--container")
    assert admin("did", "attach", "demo:all", "demo:a", "demo:b") == "demo:all: 2 attached\n"
    assert admin("did", "attach", "demo:all", "demo:a") == "demo:all: 0 attached, 1 were there\n"
    assert [item["did"] for item in admin.lines("did", "parents", "demo:a")] == ["demo:all"]
    assert admin("did", "detach", "demo:all", "demo:b") == "demo:all: 1 detached\n"
    assert [item["did"] for item in admin.lines("did", "list", "demo:*", "--where", "6<run<8")] == ["demo:b"]
    assert admin.json("did", "set", "demo:b", "--meta", "good=true", "--unset-meta", "run")["metadata"] == {
        "telescope": "low",
        "good": True,
    }
    assert admin.json("did", "set", "demo:b", "--expires", "12h")["expires_at"].startswith("2026-01-01T12:00")
    assert admin.json("did", "set", "demo:b", "--expires", "never")["expires_at"] is None
    admin("did", "close", "demo:a")
    assert "is closed" in admin.error("did", "detach", "demo:a", "demo:2001/harbour.jpg", status=1)
    admin("did", "open", "demo:a")
    assert "has ended" in admin("did", "delete", "demo:b")
    assert "dataset  demo:a" in admin("did", "show", "demo:a")
    assert "exclude each other" in admin.error("did", "add", "demo:x", "--container", "--dataset", status=2)


def test_a_cycle_of_containers_is_refused(admin: Admin) -> None:
    admin("scope", "add", "demo")
    admin("did", "add", "demo:a", "demo:b", "--container")
    admin("did", "attach", "demo:a", "demo:b")
    assert admin.error("did", "attach", "demo:b", "demo:a", status=1).startswith("error: ")


# ------------------------------------------------------------------------------------------------------- bytes


def test_bytes_go_in_are_verified_and_come_out_again(admin: Admin, shelf: Path, tmp_path: Path, world: World) -> None:
    files = [tmp_path / name for name in ("a.dat", "empty.dat")]
    files[0].write_bytes(os.urandom(3_000_000))
    files[1].touch()
    put = admin.lines("did", "put", *files, "--on", "type=disk", "--dataset", "demo:mine", "--prefix", "in/")
    assert [(item["did"], item["storage"]) for item in put] == [
        ("demo:in/a.dat", "shelf"),
        ("demo:in/empty.dat", "shelf"),
    ]
    assert (shelf / codec.derived_path("demo", "in/a.dat")).read_bytes() == files[0].read_bytes()
    assert {item["state"] for item in admin.lines("did", "replicas", "demo:mine")} == {"available"}
    out = tmp_path / "out"
    assert "from shelf, verified" in admin("did", "get", "demo:mine", "--to", out)
    assert (out / "in" / "a.dat").read_bytes() == files[0].read_bytes()
    assert admin("did", "get", "demo:mine", "--to", out).count("was there, verified") == 2
    world.check()
    world.settle()
    world.check()


def test_what_is_there_already_is_replaced_only_when_told(admin: Admin, shelf: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.dat"
    file.write_bytes(b"right")
    admin("did", "put", file, "--storage", "shelf", "--dataset", "demo:mine")
    file.write_bytes(b"other")
    assert "--replace" in admin.error("did", "get", "demo:a.dat", "--to", tmp_path, status=1)
    admin("did", "get", "demo:a.dat", "--to", tmp_path, "--replace")
    assert file.read_bytes() == b"right"


def test_bytes_that_changed_on_the_storage_never_get_the_files_name(admin: Admin, shelf: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.dat"
    file.write_bytes(b"right")
    admin("did", "put", file, "--storage", "shelf", "--dataset", "demo:mine")
    (shelf / codec.derived_path("demo", "a.dat")).write_bytes(b"wrong")
    out = tmp_path / "out"
    assert "other content" in admin.error("did", "get", "demo:a.dat", "--to", out, status=75)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (("--storage", "pictures"), "pictures takes nothing: the originals", 1),
        (("--storage", "nowhere"), "no storage 'nowhere'", 1),
        (("--on", "type=tape"), "no storage to write to", 2),
        (("--on", "type=source"), "no storage to write to", 2),
    ],
)
def test_bytes_go_only_where_they_may(
    admin: Admin, pictures: Path, tmp_path: Path, words: Any, message: str, status: int
) -> None:
    (tmp_path / "a.dat").write_bytes(b"a")
    admin("scope", "add", "demo")
    assert message in admin.error("did", "put", tmp_path / "a.dat", "--scope", "demo", *words, status=status)


def test_the_same_name_is_not_stored_twice_at_one_place_nor_with_other_content(
    admin: Admin, shelf: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.dat"
    file.write_bytes(b"right")
    words = ("did", "put", file, "--storage", "shelf", "--dataset", "demo:mine")
    admin(*words)
    assert "has a replica at shelf" in admin.error(*words, status=1)
    file.write_bytes(b"something else")
    assert "other content" in admin.error(*words, status=1)
