"""The migrations bring any database to the schema of the models, once, and fail without harm when they must wait."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dlm.clock import ManualClock
from dlm.db import migrate
from dlm.db.binaries import find_binaries
from dlm.db.embedded import EmbeddedPostgres
from dlm.db.engine import Database
from dlm.db.models import PARTITIONED, metadata

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def by_models(server: EmbeddedPostgres) -> Iterator[str]:
    """A database made from the models alone."""
    name = "test_by_models"
    server.drop_database(name)
    dsn = server.create_database(name)
    engine = sa.create_engine(dsn)
    metadata.create_all(engine)
    engine.dispose()
    yield dsn
    server.drop_database(name)


@pytest.fixture
def pg_dump(pytestconfig: pytest.Config) -> Path:
    return find_binaries(pytestconfig.getoption("--pg-bin")) / "pg_dump"


def dump(pg_dump: Path, dsn: str) -> set[str]:
    """The statements of the schema, without partitions and alembic's own table."""
    url = sa.engine.make_url(dsn).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(pg_dump), "--schema-only", "--no-owner", "--no-privileges", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    plain = re.sub(r"^(--.*|\\.*)$", "", text, flags=re.M)
    statements = {re.sub(r"\s+", " ", each).strip() for each in plain.split(";\n")}
    beside = re.compile(rf"alembic_version|\b({'|'.join(PARTITIONED)})_(\d{{4}}_\d\d|default)")
    return {each for each in statements if each and not beside.search(each)}


def partitions(database: Database, table: str) -> set[str]:
    with database.begin("look") as tx:
        rows = tx.rows(
            """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = %(table)s::regclass""",
            table=table,
        )
    return {row.relname for row in rows}


def test_the_migrations_make_what_the_models_say(dsn: str, by_models: str, pg_dump: Path) -> None:
    migrated, modelled = dump(pg_dump, dsn), dump(pg_dump, by_models)
    assert migrated - modelled == set()
    assert modelled - migrated == set()
    assert len([each for each in migrated if each.startswith("CREATE TABLE")]) == len(metadata.tables)


def test_alembic_finds_nothing_to_migrate(dsn: str) -> None:
    def is_ours(obj: object, name: str | None, kind: str, _reflected: bool, _against: object) -> bool:
        return kind != "table" or name in metadata.tables

    engine = sa.create_engine(dsn)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_ours, "compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_an_upgrade_goes_to_the_newest_and_a_second_one_changes_nothing(empty_dsn: str, pg_dump: Path) -> None:
    have, newest = migrate.current(empty_dsn)
    assert have is None and newest is not None
    migrate.upgrade(empty_dsn)
    assert migrate.current(empty_dsn) == (newest, newest)
    before = dump(pg_dump, empty_dsn)
    migrate.upgrade(empty_dsn)
    assert dump(pg_dump, empty_dsn) == before


def test_a_migrated_database_has_partitions_for_the_months_ahead_and_one_for_the_rest(dsn: str) -> None:
    database = Database(dsn)
    with database.begin("now") as tx:
        today = tx.now.date()
    for table, found in {table: partitions(database, table) for table in PARTITIONED}.items():
        months = [migrate.month_after(today, ahead) for ahead in range(migrate.MONTHS_AHEAD + 1)]
        assert found == {f"{table}_default"} | {f"{table}_{month:%Y_%m}" for month in months}
    database.dispose()


def test_what_falls_outside_the_months_goes_to_the_default_partition(database: Database, clock: ManualClock) -> None:
    clock.moment = datetime(1999, 5, 5, tzinfo=UTC)
    with database.begin("late") as tx:
        tx.run(
            """INSERT INTO event (at, object, object_id, action, actor) VALUES (%(now)s, 'site', 1, 'added', 'ann')
               RETURNING tableoid::regclass"""
        )
        assert tx.scalar("SELECT tableoid::regclass::text FROM event") == "event_default"


def test_partitions_are_made_ahead_once_and_again(database: Database) -> None:
    before = {table: partitions(database, table) for table in PARTITIONED}
    far = datetime(2031, 12, 31, tzinfo=UTC)
    for _ in range(2):
        with database.begin("partitions") as tx:
            migrate.ensure_partitions(tx, far)
    for table in PARTITIONED:
        made = partitions(database, table) - before[table]
        assert made == {f"{table}_{month}" for month in ("2031_12", "2032_01", "2032_02", "2032_03")}
    with database.begin("use") as tx:
        tx.run(
            "INSERT INTO event (at, object, object_id, action, actor) VALUES ('2032-01-01', 'site', 1, 'added', 'ann')"
        )
        assert tx.scalar("SELECT tableoid::regclass::text FROM event") == "event_2032_01"


def test_rows_that_the_default_took_do_not_stop_the_months_after_them(database: Database, clock: ManualClock) -> None:
    clock.moment = datetime(2033, 6, 10, tzinfo=UTC)
    with database.begin("late") as tx:
        tx.run("INSERT INTO event (at, object, object_id, action, actor) VALUES (%(now)s, 'site', 1, 'added', 'ann')")
    with database.begin("partitions") as tx:
        migrate.ensure_partitions(tx, tx.now)
    assert "event_2033_09" in partitions(database, "event")
    with database.begin("look") as tx:
        assert tx.scalar("SELECT count(*) FROM event WHERE at = %(now)s") == 1


def test_months_meet_whatever_the_time_zone_of_the_database(empty_dsn: str) -> None:
    name = sa.engine.make_url(empty_dsn).database
    database = Database(empty_dsn)
    with database.begin("zone") as tx:
        tx.run(f"ALTER DATABASE {name} SET timezone = 'America/New_York'")
    migrate.upgrade(empty_dsn)
    with database.begin("partitions") as tx:
        migrate.ensure_partitions(tx, tx.now + timedelta(days=70))
    database.dispose()


@pytest.mark.parametrize(
    ("day", "months", "first"),
    [
        (date(2026, 1, 31), 1, date(2026, 2, 1)),
        (date(2026, 12, 1), 1, date(2027, 1, 1)),
        (date(2026, 11, 20), 14, date(2028, 1, 1)),
    ],
)
def test_months_are_counted_across_years(day: date, months: int, first: date) -> None:
    assert migrate.month_after(day, months) == first


@pytest.fixture
def waiting_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One more migration than there is: it makes a table, then alters `rule`."""
    scripts = Path(migrate.__file__).parent / "migrations"
    place = tmp_path / "migrations"
    (place / "versions").mkdir(parents=True)
    (place / "env.py").write_text((scripts / "env.py").read_text().replace("'10s'", "'200ms'"))
    for script in (scripts / "versions").glob("0*.py"):
        (place / "versions" / script.name).write_text(script.read_text())
    newest = max(script.stem.split("_")[0] for script in (scripts / "versions").glob("0*.py"))
    (place / "versions" / "9999_test.py").write_text(
        f"""from alembic import op
revision = "9999"
down_revision = "{newest}"

def upgrade():
    op.execute("CREATE TABLE half_way (id int)")
    op.execute("ALTER TABLE rule ADD COLUMN half_way int")
"""
    )
    monkeypatch.setattr(migrate, "files", lambda _: tmp_path)
    return newest


def test_a_migration_that_waits_for_a_lock_gives_up_and_leaves_nothing_behind(dsn: str, waiting_migration: str) -> None:
    database = Database(dsn)
    with database.begin("busy") as tx:
        tx.run("LOCK TABLE rule IN ACCESS SHARE MODE")
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            migrate.upgrade(dsn)
        assert tx.scalar("SELECT count(*) FROM rule") == 0
    assert migrate.current(dsn)[0] == waiting_migration
    with database.begin("look") as tx:
        assert tx.scalar("SELECT to_regclass('half_way')") is None
    migrate.upgrade(dsn)
    assert migrate.current(dsn)[0] == "9999"
    database.dispose()
