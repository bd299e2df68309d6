"""tools/quickstart: the whole tour, twice and interrupted, over awkward files; and what it refuses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database
from pages import CHECKOUT
from processes import free_port

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

FILES = 120
LIMIT_S = 120
LARGE_BYTES = 11_000_000_000
NFD = "cafe\u0301.txt"


class Visitor:
    """Somebody who runs the quick start in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "my pictures"
        self.var = directory / "var"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DLM_")}
        self.environment = kept

    def command(self, *words: str, data: Path | None = None) -> list[str]:
        where = [str(data or self.data), "--directory", str(self.var)]
        return [sys.executable, str(CHECKOUT / "tools" / "quickstart"), *where, *words]

    def run(self, *words: str, data: Path | None = None, status: int = 0) -> str:
        """What it says; it must end with the status."""
        command = self.command(*words, data=data)
        ended = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )
        assert ended.returncode == status, f"{ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout + ended.stderr

    def interrupt(self, after: str) -> str:
        """Run it, press Ctrl-C when it says `after`, and return what it said."""
        command = self.command()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a script inherits it ignored
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=self.environment) as tour:
            assert tour.stdout is not None
            said = ""
            for line in tour.stdout:
                said += line
                if after in line:
                    tour.send_signal(signal.SIGINT)
        assert tour.returncode == 130, said
        return said

    def admin(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dlm.cli.main", "--config", str(self.var / "dlm.cfg"), *words]
        environment = {**self.environment, "PYTHONPATH": str(CHECKOUT / "lib")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)

    def proofs(self) -> int:
        """How many deletions were proven so far, by the database itself."""
        server = EmbeddedPostgres(self.var / "db")
        database = Database(server.start())
        try:
            with database.begin("test") as tx:
                return int(tx.scalar("SELECT count(*) FROM proof"))
        finally:
            database.dispose()
            server.stop()


@pytest.fixture
def visitor(pytestconfig: pytest.Config) -> Iterator[Visitor]:
    directory = Path(os.environ["DLM_TEST_DIRECTORY"], f"visitor-{os.getpid()}")
    directory.mkdir(mode=0o755)
    visitor = Visitor(directory)
    pg_bin = pytestconfig.getoption("--pg-bin")
    if pg_bin is not None:
        visitor.environment["DLM_DATABASE_BIN_DIR"] = str(pg_bin)
    visitor.data.mkdir()
    try:
        yield visitor
    finally:
        if (visitor.var / "dlm.cfg").exists():
            visitor.admin("down")
        EmbeddedPostgres(visitor.var / "db").remove()
        subprocess.run(["rm", "-rf", str(directory)], check=True)


def fill(root: Path) -> None:
    """120 files that can be registered, and what cannot: a link, a socket, names that are no text or no name."""
    for number in range(FILES - 2):
        folder = root / f"year {number % 5}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"x" * number)
    (root / NFD).write_text("a name in two parts")
    (root / "🚢.txt").write_text("a ship")
    (root / "link").symlink_to(NFD)
    (root / "bell\x07").write_text("a control character")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.txt")).write_text("no Unicode")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(root / "socket"))


def stats(root: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and inode of everything below the root, and of itself."""
    paths = [root, *root.rglob("*")]
    return {str(path): (s.st_size, s.st_mtime_ns, s.st_ino) for path in paths for s in [path.lstat()]}


def test_the_tour_keeps_its_word_interrupted_again_and_after_a_change(visitor: Visitor) -> None:
    fill(visitor.data)
    before = stats(visitor.data)

    said = visitor.interrupt("A promise")
    assert f"{FILES} files" in said and "demo:my pictures" in said
    assert said.count("left out") == 3
    assert visitor.admin("status").returncode == 0  # what was started runs, and is whole
    assert visitor.admin("down").returncode == 0
    proofs = visitor.proofs()

    said = visitor.run("--check")
    assert f"2 verified copies of {FILES} files, at bern and perth" in said
    assert "Something breaks: 1 file" in said
    assert "usage 0 B" in said and "unchanged" in said
    assert "nothing ran" in visitor.admin("down").stdout
    assert stats(visitor.data) == before
    assert visitor.proofs() - proofs == 2 * FILES
    assert "undo_window" not in (visitor.var / "dlm.cfg").read_text()
    assert "breaker" not in (visitor.var / "dlm.cfg").read_text()

    (visitor.data / "year 1" / "1.jpg").write_text("another picture")
    said = visitor.run("--check")
    assert f"{FILES - 1} files" in said and "left out: 1 × changed since an earlier tour" in said
    assert "registered in place as demo:my pictures-2" in said and "usage 0 B" in said


def test_a_second_tour_leaves_the_users_own_rules_storages_and_copies_alone(visitor: Visitor) -> None:
    for number in range(20):
        (visitor.data / f"{number}.jpg").write_bytes(b"x" * number)
    visitor.run("--check")
    assert visitor.admin("up").returncode == 0
    own = visitor.data.parent / "own disk"
    for words in (
        ("site", "add", "home"),
        ("storage", "add", "home-disk", "--site", "home", "--path", str(own), "--type", "disk"),
        ("rule", "add", "demo:my pictures", "--copies", "1", "--on", "home-disk", "--watch"),
        ("rule", "add", "demo:my pictures", "--copies", "1", "--on", "bern-disk", "--watch"),
    ):
        done = visitor.admin(*words)
        assert done.returncode == 0, done.stdout + done.stderr

    said = visitor.run("--check")
    assert "2 rules of yours on it" in said and "20 stay: rules of yours hold them" in said
    assert sum(path.suffix == ".jpg" for path in own.rglob("*")) == 20
    assert visitor.admin("up").returncode == 0
    assert visitor.admin("rule", "list", "--state", "ok", "--json").stdout.count('"state": "ok"') == 2
    assert "undo window the server's" in visitor.admin("storage", "show", "home-disk").stdout
    assert "reaper.undo_window_s  86400.0" in visitor.admin("config", "show", "reaper").stdout


def test_much_data_is_not_touched_without_a_word(visitor: Visitor) -> None:
    with open(visitor.data / "large", "wb") as file:
        file.truncate(LARGE_BYTES)
    said = visitor.run("--check", status=1)
    assert "1 file, 11.0 GB" in said and "--yes" in said
    assert not visitor.var.exists()


def test_what_cannot_be_shown_is_refused_in_one_line(visitor: Visitor) -> None:
    assert "no file that can be read" in visitor.run(status=1)
    assert "is no directory" in visitor.run(data=visitor.data / "nowhere", status=1)
    (visitor.var / "inside").mkdir(parents=True)
    assert "dlm's own" in visitor.run(data=visitor.var / "inside", status=1)


def test_a_failure_names_the_step_and_the_logs_and_leaves_nothing_running(visitor: Visitor) -> None:
    fill(visitor.data)
    port = free_port()
    visitor.var.mkdir()
    var = visitor.var
    settings = f"[database]\nembedded_dir={var}/db\n[run]\ndir={var}\n[web]\nport={port}\n"
    client = f"[secrets]\nkey_file={var}/secrets.key\n[client]\nurl=http://127.0.0.1:{port}\ntoken_file={var}/token\n"
    (var / "dlm.cfg").write_text(settings + client)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        said = visitor.run("--check", status=1)
    assert "✗ services" in said and "cannot listen" in said and "log/web.log" in said
    assert "nothing ran" in visitor.admin("down").stdout
