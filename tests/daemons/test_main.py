"""dlm-daemon as a real process: one pass, a run until SIGTERM, and every way it can end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conveying import Yard
from dlm import config
from dlm.daemons import main
from dlm.db import changes, daemons
from dlm.db.engine import Database
from dlm.errors import InvalidInput
from dlm.types import ChangeKind

pytestmark = pytest.mark.processes
COMMAND = [sys.executable, "-W", "error", "-m", "dlm.daemons.main"]
PATIENCE_S = 60


def environment(dsn: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("DLM_")}
    return {**kept, "DLM_DATABASE_DSN": dsn}


def run(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=environment(dsn), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_without_a_name_it_says_which_there_are(dsn: str) -> None:
    ended = run(dsn)
    assert ended.returncode == 2 and ended.stderr.startswith("error: say which daemon\n hint: one or more of judge")


@pytest.fixture
def started(dsn: str) -> Iterator[Any]:
    """Starts dlm-daemon in the background; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, address: str = dsn) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(address),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process logs, up to the line with the text."""
    assert process.stderr is not None
    seen, limit = "", time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        if select.select([process.stderr], [], [], 1.0)[0]:
            line = process.stderr.readline()
            seen += line
            if text in line:
                return seen
            assert line or process.poll() is None, seen
    raise AssertionError(f"{text!r} was not logged: {seen}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jugde", "--once"], "there is no daemon 'jugde'"),
        (["judge", "--once", "--set", "judge.intervall_s=1"], "judge_intervall_s is no setting"),
        (["judge", "--once", "--set", "judge"], "section.key=value"),
        (["judge", "--dry-run"], "--dry-run goes with --once"),
    ],
)
def test_wrong_input_ends_with_status_2_and_one_line(dsn: str, arguments: list[str], message: str) -> None:
    done = run(dsn, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_configuration_file_that_is_not_there_fails_with_status_1(dsn: str, tmp_path: Path) -> None:
    done = run(dsn, "judge", "--once", "--config", str(tmp_path / "none.cfg"))
    assert done.returncode == 1 and "no configuration file" in done.stderr


def test_one_pass_of_all_tells_what_each_did(dsn: str) -> None:
    done = run(dsn, "all", "--once", "--json")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [item["daemon"] for item in told] == ["judge", "conveyor", "reaper", "auditor"]
    assert all(set(item) == {"daemon", "counts", "is_full", "dry_run"} for item in told)


def test_a_dry_run_counts_and_writes_nothing(dsn: str, database: Database, tmp_path: Path) -> None:
    with database.begin("test") as tx:
        changes.add(tx, ChangeKind.STORAGES)
    done = run(dsn, "judge", "--once", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("judge     changes 1") and "dry run" in done.stdout
    with database.begin("test") as tx:
        assert tx.scalar("SELECT count(*) FROM change") == 1


def test_a_conveyor_that_runs_once_records_what_it_moved(dsn: str, database: Database, tmp_path: Path) -> None:
    yard = Yard(database, tmp_path)
    source, destination = yard.storage("perth"), yard.storage("bern")
    yard.wish(yard.stored([b"one", b"two"], source), destination)
    done = run(dsn, "conveyor", "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["done"] == 2, done.stdout


def test_a_database_that_is_down_is_a_temporary_failure_of_one_pass() -> None:
    done = run("postgresql+psycopg://nobody@127.0.0.1:9/none", "judge", "--once")
    assert done.returncode == 75 and "does not answer" in done.stderr


def test_a_database_without_the_schema_names_the_way_out(empty_dsn: str) -> None:
    done = run(empty_dsn, "judge", "--once")
    assert done.returncode == 1 and "dlm-admin db upgrade" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemons_in_order_and_nobody_counts_them_any_more(
    started: Any, dsn: str, number: signal.Signals
) -> None:
    process = started("all", "--set", "log.format=json")
    log = read_until(process, "started: judge conveyor reaper auditor")
    assert all(json.loads(line)["level"] for line in log.splitlines())
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    database = Database(dsn)
    with database.begin("test") as tx:
        assert daemons.list_all(tx) == []
    database.dispose()


def test_daemons_wait_for_a_database_that_is_not_there_yet(started: Any) -> None:
    process = started("judge", address="postgresql+psycopg://nobody@127.0.0.1:9/none")
    read_until(process, "waiting for the database")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_daemons_run_in_the_order_of_the_work_each_once() -> None:
    assert main.choose(["reaper", "judge", "reaper"]) == ["judge", "reaper"]
    assert main.choose(["all", "judge"]) == list(main.DAEMONS)


def test_settings_are_given_as_section_key_value() -> None:
    assert config.flags_of(["judge.batch_rules=5", "database.dsn=a=b"]) == {
        "judge_batch_rules": "5",
        "database_dsn": "a=b",
    }
    with pytest.raises(InvalidInput):
        config.flags_of(["judge_batch_rules=5"])
