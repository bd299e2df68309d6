"""`conveyor`: requests through the conveyor's bookkeeping with a mover that does nothing: claim, plan, record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dlm import config, protocols
from dlm.core import mover
from dlm.daemons.conveyor import Conveyor
from dlm.protocols.posix import PosixProtocol
from dlm.transfertools import Copy, Outcome
from dlm.transfertools.interface import Transfertool
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World

BATCH = 10_000


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    race = Race("conveyor", "requests/s", JUDGED, convey, "bare SQL, batches of 10,000", convey_bare)
    yield from bench.run(race, files)


def prepare(place: Place) -> None:
    """A rule of one copy over a dataset at origin, judged; both storages speak `null`."""
    with place.database.begin("bench.prepare", worlds.ACTOR) as tx:
        worlds.base(tx, 1)
        worlds.files(tx, place.size)
        tx.run("INSERT INTO protocol (storage_id, scheme, prefix) SELECT id, 'null', '/' FROM storage")
    worlds.declare(place.database, "bench:ds", 1, "s1")
    worlds.judge_all(place.database)


JUDGED = World("a rule that is judged", prepare)


class NullProtocol(PosixProtocol):
    """A storage whose marker is always seen; nothing else is asked of it."""

    def require_marker(self, storage_uuid: str) -> None:
        return None


class NullTool(Transfertool):
    """Says of every copy that it arrived as it should."""

    def copy_many(self, copies: Sequence[Copy], deadline: float, stop: Callable[[], bool]) -> Iterator[Outcome]:
        for copy in copies:
            yield Outcome(copy.request_id, True, copy.size_bytes, copy.checksums, bytes_moved=copy.size_bytes or 0)


def convey(place: Place) -> None:
    protocols._ADAPTERS["null"] = NullProtocol
    mover.select = lambda *schemes, **options: NullTool()  # type: ignore[assignment]
    conveyor = Conveyor(place.database, config.load(None, {}, {}))
    done = 0
    while arrived := conveyor.run_once().counts.get("done", 0):
        done += arrived
    assert done == place.size, done


def convey_bare(place: Place) -> None:
    """What a batch must leave: requests claimed, replicas available, attempts noted, requests gone, usage changed."""
    for _ in range(-(-place.size // BATCH)):
        with place.database.begin("bench.bare") as tx:
            tx.run(
                """UPDATE request SET state = 'active', fence = 1, claimed_until = %(now)s, source_storage_id = 2
                    WHERE id IN (SELECT id FROM request WHERE storage_id = 1 AND state = 'queued'
                                  ORDER BY priority, next_attempt_at, id LIMIT %(n)s FOR UPDATE SKIP LOCKED)""",
                n=BATCH,
            )
        with place.database.begin("bench.bare") as tx:
            tx.run(
                """UPDATE replica r SET state = 'available', verified_at = %(now)s, next_check_at = %(now)s
                     FROM request q WHERE q.state = 'active' AND r.did_id = q.did_id AND r.storage_id = q.storage_id"""
            )
            tx.run(
                """INSERT INTO attempt (did_id, storage_id, ended_at, request_id, number, outcome, size_bytes)
                   SELECT did_id, storage_id, %(now)s, id, 1, 'done', size_bytes FROM request WHERE state = 'active'"""
            )
            tx.run("DELETE FROM request WHERE state = 'active'")
            tx.run("UPDATE storage_usage SET used_files = used_files + %(n)s WHERE storage_id = 1", n=BATCH)
