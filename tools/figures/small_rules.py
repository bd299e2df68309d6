"""`small-rules`: rules on single files, over REST by 8 clients, and how fast the judge places them."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator

from dlm.core import rules
from figures import worlds
from figures.measuring import Bench, Figure, Place, Race, World
from figures.services import Caller, Web

CLIENTS, PROCESSES = 8, 2
SERVERS = min(2, os.cpu_count() or 1)  # processes of the service: a site sets them by its cores


def measure(bench: Bench, files: int) -> Iterator[Figure]:
    number = files // 50
    yield from bench.run(
        Race(
            "small-rules-rest",
            "rules/s",
            FILES,
            post,
            "bare INSERT, 8 connections",
            post_bare,
            units={"p50": "ms", "p99": "ms"},
        ),
        number,
    )
    judged = Race("small-rules-judged", "rules/s", FILES, judge, "bare SQL, same rows", judge_bare, arrange=declare)
    yield from bench.run(judged, files // 10)


def prepare(place: Place) -> None:
    with place.database.begin("bench.prepare") as tx:
        worlds.base(tx)
        worlds.files(tx, place.size)


FILES = World("files", prepare)


def body(number: int) -> str:
    return json.dumps({"did": f"bench:ds.{number}", "copies": 2, "storages": "type=disk", "spread": "site"})


def post(place: Place) -> dict[str, float]:
    with Web(place, web_processes=SERVERS) as web:
        seconds, waits = _post_all(web, place.size)
    return {"": seconds, **worlds.percentiles(waits)}


def _post_all(web: Caller, number: int) -> tuple[float, list[float]]:
    """(seconds from the first POST to the last answer, seconds of each), from two processes with four clients each."""
    shares = [range(1 + index, number + 1, PROCESSES) for index in range(PROCESSES)]
    context = multiprocessing.get_context("fork")
    with context.Pool(PROCESSES) as pool:
        found = pool.starmap(_clients, [(web.port, web.token, list(share)) for share in shares])
    start, end = min(item[0] for item in found), max(item[1] for item in found)
    return end - start, [seconds for item in found for seconds in item[2]]


def _clients(port: int, token: str, numbers: list[int]) -> tuple[float, float, list[float]]:
    """(start, end, seconds of each POST) by four threads, each on a connection that stays."""
    each = CLIENTS // PROCESSES
    waits: list[float] = []
    shares = [numbers[index::each] for index in range(each)]
    threads = [threading.Thread(target=_client, args=(port, token, share, waits)) for share in shares]
    start = time.time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waits) == len(numbers)
    return start, time.time(), waits


def _client(port: int, token: str, numbers: list[int], waits: list[float]) -> None:
    web = Caller(port, token)
    connection = web.connect()
    for number in numbers:
        start = time.perf_counter()
        connection.request("POST", "/api/v1/rules", body(number), web.headers())
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 201, text
        waits.append(time.perf_counter() - start)


def post_bare(place: Place) -> dict[str, float]:
    with place.database.begin("bench.bare") as tx:
        tx.run("INSERT INTO expression (canonical) VALUES ('type=disk')")
    shares = [range(1 + index, place.size + 1, CLIENTS) for index in range(CLIENTS)]
    waits: list[float] = []
    threads = [threading.Thread(target=_insert, args=(place, share, waits)) for share in shares]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"": time.perf_counter() - start, **worlds.percentiles(waits)}


def _insert(place: Place, numbers: range, waits: list[float]) -> None:
    for number in numbers:
        start = time.perf_counter()
        with place.database.begin("bench.bare") as tx:
            tx.run(
                """INSERT INTO rule (did_id, account_id, copies, expression_id, created_at, state_since, next_judge_at)
                   SELECT id, 1, 2, 1, %(now)s, %(now)s, %(now)s FROM did WHERE scope_id = 1 AND name = %(name)s""",
                name=f"ds.{number}",
            )
        waits.append(time.perf_counter() - start)


def declare(place: Place) -> None:
    for start in range(1, place.size + 1, 10_000):
        numbers = range(start, min(start + 10_000, place.size + 1))
        with place.database.begin("bench.declare", worlds.ACTOR) as tx:
            rules.declare(tx, [rules.Declaration(f"bench:ds.{i}", 2, "type=disk", spread="site") for i in numbers])


def judge(place: Place) -> None:
    worlds.judge_all(place.database)
    with place.database.begin("bench.look") as tx:
        assert tx.scalar("SELECT count(*) FROM rule WHERE state <> 'replicating'") == 0


def judge_bare(place: Place) -> None:
    with place.database.begin("bench.bare") as tx:
        tx.run(
            """INSERT INTO lock (did_id, storage_id, rule_id, files, size_bytes, created_at, fill_after)
               SELECT r.did_id, s, r.id, 1, 1000, %(now)s, NULL FROM rule r, unnest(ARRAY[1, 2]) s ORDER BY 1, 2"""
        )
        tx.run(
            """INSERT INTO replica (did_id, storage_id, state, size_bytes, created_at)
               SELECT did_id, s, 'copying', 1000, %(now)s FROM rule, unnest(ARRAY[1, 2]) s ORDER BY 1, 2"""
        )
        tx.run(
            """INSERT INTO request (did_id, storage_id, size_bytes, created_at, next_attempt_at, priority)
               SELECT did_id, s, 1000, %(now)s, %(now)s, 3 FROM rule, unnest(ARRAY[1, 2]) s ORDER BY 1, 2"""
        )
        tx.run(
            """INSERT INTO event (at, object, object_id, action, actor)
               SELECT %(now)s, 'rule', id, a, 'dlm' FROM rule, unnest(ARRAY['placed', 'replicating']) a"""
        )
        tx.run("UPDATE rule SET state = 'replicating', next_judge_at = %(now)s + interval '1 hour'")
