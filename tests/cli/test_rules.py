"""Plan before, watch during, why after; mistakes met half-way."""

from __future__ import annotations

import pytest

from cli.conftest import Admin
from dlm.cli import progress, storages
from dlm.cli.client import Client
from world import World


@pytest.fixture
def eb(world: World, admin: Admin) -> World:
    """Dataset test:eb with 30 files at perth; storages in Australia, Switzerland and South Africa."""
    for site, country in (("perth", "AU"), ("bern", "CH"), ("cape", "ZA")):
        admin("site", "add", site, "--country", country)
    world.add_storage("perth-t1", "perth", attributes={"tier": "1"}, type="disk")
    world.add_storage("bern-t1", "bern", attributes={"tier": "1"}, type="disk")
    world.add_storage("cape-t1", "cape", attributes={"tier": "1"}, capacity_bytes=10**9, type="disk")
    world.many("perth-t1", 30, "eb", verified=True)
    return world


def declare(admin: Admin, *words: str) -> str:
    return str(admin.json("rule", "add", "test:eb", "--copies", "2", "--on", "tier=1", *words)["id"])


def test_a_plan_tells_what_is_there_what_moves_and_the_space_after(admin: Admin, eb: World) -> None:
    text = admin("rule", "plan", "test:eb", "--copies", "*", "--on", "tier=1", "--spread", "site")
    lines = text.splitlines()
    assert lines[0].startswith(" plan for test:eb   dataset, 30 files")
    assert "already there   perth-t1   30 files" in text
    assert any("to copy" in line for line in lines) and text.count("from perth-t1") == 2
    assert "space after     cape-t1   1.0 GB free" in text
    assert lines[-1].endswith("declare it?  dlm-admin rule add … (same words)")
    assert admin.json("rule", "plan", "test:eb", "--copies", "2", "--on", "tier=1")["transfers"]["files"] == 30
    assert admin.lines("rule", "list") == []


def test_a_plan_that_cannot_be_kept_does_not_ask_to_be_declared(admin: Admin, eb: World) -> None:
    for name in ("bern-t1", "cape-t1"):
        admin("storage", "set", name, "--write", "off", "--reason", "disk replacement")
    text = admin("rule", "plan", "test:eb", "--copies", "2", "--on", "tier=1")
    assert "impossible" in text and "declare it?" not in text and "cannot be kept as things are" in text
    text = admin("rule", "plan", "test:eb", "--copies", "1", "--on", "cape-t1", "--sources", "bern-t1")
    assert "declare it?" not in text
    admin("storage", "set", "cape-t1", "--write", "on")
    text = admin("rule", "plan", "test:eb", "--copies", "1", "--on", "cape-t1", "--sources", "bern-t1")
    assert "from nowhere" in text and "no source can be read for some of it" in text and "declare it?" not in text


def test_a_container_shows_what_its_datasets_hold(admin: Admin, eb: World) -> None:
    eb.container("box", "eb")
    eb.container("all", "box")
    assert "holds      30 files, 541 B" in admin("did", "show", "test:all")
    assert {item["did"]: item["files"] for item in admin.lines("did", "list", "test")}["test:box"] == 30
    assert admin("rule", "plan", "test:all", "--copies", "1", "--on", "tier=1").startswith(
        " plan for test:all   container, 30 files, "
    )
    rule = str(admin.json("rule", "add", "test:all", "--copies", "1", "--on", "bern-t1")["id"])
    assert admin.json("rule", "add", "test:box", "--copies", "1", "--on", "bern-t1")["files"] == 30
    assert {item["files"] for item in admin.lines("rule", "list")} == {30}
    eb.settle()
    assert admin("rule", "watch", rule).startswith(" ok       1 verified copy of 30 files, at bern-t1")
    assert admin("rule", "show", rule).startswith(" ok       1 copy of 30 files on bern-t1")


def test_a_rule_is_declared_watched_until_it_is_ok_and_shown(admin: Admin, eb: World) -> None:
    text = admin("rule", "add", "test:eb", "--copies", "2", "--on", "tier=1", "--spread", "site", "--lifetime", "365d")
    rule = text.split()[1]
    assert f"rule {rule}  test:eb  2 × tier=1  spread site" in text and f"dlm-admin rule watch {rule}" in text
    eb.settle()
    assert admin("rule", "watch", rule).startswith(" ok       2 verified copies of 30 files, at ")
    shown = admin("rule", "show", rule)
    assert shown.startswith(" ok       2 copies of 30 files on tier=1, spread site   root · since ")
    assert "60 of 60 replicas ok" in shown and " next     " in shown and "look     dlm-admin why test:eb" in shown
    assert admin.json("rule", "show", rule)["state"] == "ok"
    assert admin.json("rule", "watch", rule)["state"] == "ok"
    assert len(admin.lines("rule", "locks", rule)) == 2
    assert "declared" in admin("rule", "history", rule)
    assert [item["id"] for item in admin.lines("rule", "list", "--state", "ok", "--did", "test:eb")] == [rule]


def test_watching_ends_with_status_75_after_the_time_given(admin: Admin, eb: World) -> None:
    rule = declare(admin)
    error = admin.error("rule", "watch", rule, "--timeout", "0s", status=75)
    assert "still declared after" in error and "the work goes on" in error


def test_watching_a_rule_that_cannot_be_kept_says_why_with_status_1(admin: Admin, eb: World) -> None:
    rule = declare(admin)
    for name in ("bern-t1", "cape-t1"):
        admin("storage", "set", name, "--write", "off", "--reason", "disk replacement")
    eb.settle()
    text = admin("rule", "watch", rule, status=1)
    assert text.startswith(" impossible") and f"dlm-admin why rule {rule}" in text
    assert "disk replacement" in admin("why", "rule", rule)
    assert "impossible" in admin("status")


def test_ctrl_c_stops_watching_and_never_the_work(admin: Admin, eb: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = declare(admin)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.time, "sleep", interrupted)
    assert "the work goes on" in admin("rule", "watch", rule)
    assert admin.json("rule", "show", rule)["state"] == "declared"


def test_a_rule_is_changed_locked_suspended_and_ended(admin: Admin, eb: World) -> None:
    rule = declare(admin)
    eb.settle()
    assert "priority 5" in admin("rule", "set", rule, "--priority", "5", "--lifetime", "30d", "--comment", "night run")
    assert admin.json("rule", "set", rule, "--lifetime", "forever")["expires_at"] is None
    admin("rule", "set", rule, "--lock")
    assert "is locked" in admin.error("rule", "cancel", rule, status=1)
    admin("rule", "set", rule, "--unlock", "--suspend")
    eb.settle()
    assert admin.json("rule", "set", rule, "--resume")["suspended"] is False
    assert "priority 3 → 5, expires_at none → 2026-01-31" in admin("why", "rule", rule)
    assert "changed by root: locked no → yes" in admin("why", "rule", rule)
    assert "lets go: what no other rule holds of its 60 replicas waits in the undo window" in admin(
        "rule", "cancel", rule
    )
    eb.settle()
    assert "gone" in admin("rule", "watch", rule)
    assert admin.lines("rule", "list", "--state", "gone")[0]["id"] == rule


def test_a_rule_is_asked_for_more_copies_and_for_fewer(admin: Admin, eb: World) -> None:
    rule = declare(admin)
    eb.settle()
    assert f"rule {rule}  declared since" in admin("rule", "set", rule, "--copies", "3")
    eb.settle()
    assert "3 copies of 30 files" in admin("rule", "show", rule)
    assert "1 × tier=1" in admin("rule", "set", rule, "--copies", "1")
    eb.settle()
    assert "surplus released: " in admin("why", rule)
    assert [item["files"] for item in admin.lines("rule", "locks", rule)] == [30]
    admin("rule", "set", rule, "--copies", "*")
    assert "copies=*" in admin("rule", "history", rule) and "copies 1 → *" in admin("why", "rule", rule)
    other = declare(admin, "--spread", "site")
    error = admin.error("rule", "set", rule, "--copies", "2", status=1)
    assert (
        f"rule {other} asks for this already, differently: spread site, not none" in error
        and "cancel the other" in error
    )
    assert "4 copies asked, 3 storages match" in admin.error("rule", "set", rule, "--copies", "4", status=2)


def test_a_rule_is_moved_and_shows_where_to(admin: Admin, eb: World) -> None:
    old = declare(admin, "--spread", "site")
    eb.settle()
    assert f"rule {old} stays until it is ok" in admin(
        "rule", "move", old, "cape-t1", "--copies", "1", "--spread", "none"
    )
    new = admin.json("rule", "show", old)["moves_to"]
    assert f"to rule {new}; it stays until that is ok" in admin("rule", "show", old)
    assert f"here from rule {old}" in admin("rule", "show", new)
    assert f"is moving to rule {new} already" in admin.error("rule", "move", old, "bern-t1", status=1)
    eb.settle()
    gone = admin("rule", "show", old)
    assert f"moved    to rule {new}, which took its place" in gone and "stays until" not in gone
    assert f"moved    here from rule {old}, which let go in its favour" in admin("rule", "show", new)
    assert "the name of an attribute is wanted" in admin.error(
        "rule", "move", new, "tier=1", "--weight", "tier=1", status=2
    )
    assert f"rule {new} is ok and takes its place" in admin("why", old)
    assert "is on cape-t1 already" in admin.error("rule", "move", new, "cape-t1", status=2)


def test_a_rule_that_begins_later_says_when_and_can_be_told_otherwise(admin: Admin, eb: World) -> None:
    words = ("test:eb", "--copies", "2", "--on", "tier=1", "--delay", "12h", "--lifetime", "30d")
    assert "begins          2026-01-01" in admin("rule", "plan", *words)
    text = admin("rule", "add", *words)
    rule = text.split()[1]
    assert "declared  begins at 2026-01-01T12:00:00Z" in text
    eb.settle()
    assert "it begins: the judge places it" in admin("rule", "show", rule)
    assert "begins at 2026-01-02T00:00:00Z" in admin("rule", "set", rule, "--delay", "1d")
    assert "begins at 2026-01-03T00:00:00Z" in admin("rule", "set", rule, "--starts", "2026-01-03T00:00:00Z")
    assert "begins at 2026-01-03T00:00:00Z" in admin("rule", "set", rule, "--expires", "2026-02-01T00:00:00Z")
    assert "from 2026-01-03 00:00:00Z until 2026-02-01 00:00:00Z" in admin("rule", "show", rule)
    error = admin.error("rule", "set", rule, "--starts", "2027-01-01T00:00:00Z", status=2)
    assert "it would end, at 2026-02-01T00:00:00Z, before it begins" in error and "give its lifetime again" in error
    assert "begins at 2026-01-03T00:00:00Z" in admin(
        "rule", "set", rule, "--starts", "2026-01-03T00:00:00Z", "--lifetime", "30d"
    )
    error = admin.error("rule", "set", rule, "--starts", "2020-01-01T00:00:00Z", status=2)
    assert "2020-01-01T00:00:00Z is over: it is 2026-01-01T" in error and "--starts now" in error
    assert "before it begins" in admin.error("rule", "set", rule, "--expires", "2026-01-02T00:00:00Z", status=2)
    assert "begins" not in admin("rule", "set", rule, "--starts", "now")
    eb.settle()
    assert admin("rule", "show", rule).startswith(" ok")
    error = admin.error("rule", "set", rule, "--delay", "1h", status=1)
    assert "has begun" in error and "its end can be changed" in error


def test_the_same_call_with_the_same_key_makes_one_rule(admin: Admin, eb: World) -> None:
    assert declare(admin, "--idempotency-key", "k1") == declare(admin, "--idempotency-key", "k1")
    error = admin.error("rule", "add", "test:eb", "--copies", "2", "--on", "tier=1", status=1)
    assert "asks for this already" in error and "dlm-admin rule show" in error


def test_why_tells_the_chain_of_facts_and_what_is_next(admin: Admin, eb: World) -> None:
    rule = declare(admin)
    eb.settle()
    text = admin("why", "test:f1")
    assert [
        word for word in ("wanted", "decided", "tried", "protected", "checked", "next") if f" {word} " not in text
    ] == []
    assert rule in text
    assert "2 × tier=1" in admin("why", rule)
    copied = next(item["storage"] for item in admin.lines("rule", "locks", rule) if item["storage"] != "perth-t1")
    at = admin.json("why", "test:f1", "--at", copied)
    assert [item["storage"] for item in at["replicas"]] == [copied]


def test_what_is_stuck_is_listed_explained_and_tried_again(admin: Admin, eb: World) -> None:
    rule = declare(admin)
    for file in eb.root.glob("perth-t1/test/*/*/f*"):
        file.write_bytes(b"not the file")
    eb.judge.run_once()
    for _ in range(12):
        eb.run(eb.conveyor)
        eb.clock.advance(4000)
    (first, *_) = requests = admin.lines("request", "list", "--rule", rule, "--state", "parked")
    assert len(requests) == 30
    eb.run(eb.judge)
    assert admin("rule", "watch", rule, status=1).startswith(" stuck")
    assert f"dlm-admin request list --rule {rule} --state parked" in admin("rule", "show", rule)
    assert "30 stuck\n" in admin("why", "rule", rule)
    assert "parked ←" in admin("status")
    assert "OUTCOME" in admin("request", "show", first["id"])
    assert "tried" in admin("why", "request", first["id"])
    assert admin("request", "retry", first["id"]) == f"request {first['id']} is tried again now\n"
    assert "29 requests tried again now: 29 parked, 0 waiting" in admin("request", "retry", "--rule", rule)


def test_a_rule_shows_all_that_was_asked(admin: Admin, eb: World) -> None:
    asked = ("--spread", "site", "--weight", "tier", "--grouping", "none", "--sources", "name=perth-t1")
    rule = declare(admin, *asked)
    ways = "tier=1, spread site, weight tier, grouping none, copied only from name=perth-t1"
    assert f"2 copies of 30 files on {ways}" in admin("rule", "show", rule)
    assert f"2 × {ways} for test:eb" in admin("why", "rule", rule)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lifetime", "3weeks"), "--lifetime: '3weeks' is no duration"),
        (("--expires", "tomorrow"), "--expires: 'tomorrow' is no moment"),
        (("--priority", "9"), "1 (low) to 5 (urgent)"),
        (("--grouping", "files"), "hint: what stays together: all of it, each dataset, or none"),
    ],
)
def test_what_is_no_value_of_an_option_names_it_and_what_it_takes(
    admin: Admin, eb: World, words: tuple[str, str], message: str
) -> None:
    assert message in admin.error("rule", "add", "test:eb", "--copies", "2", "--on", "tier=1", *words, status=2)
    assert "--starts: 'later' is no moment" in admin.error("rule", "set", "x", "--starts", "later", status=2)
    assert "say why, in a few words: --reason TEXT" in admin.error(
        "storage", "set", "bern-t1", "--write", "off", status=2
    )


@pytest.mark.parametrize(
    ("copies", "expression", "message", "status"),
    [
        (
            "2",
            "tier=1&contry=AU",
            "no storage matches: 'contry' is no attribute (column 8). Did you mean 'country'?",
            2,
        ),
        ("2", "tier=1&contry=AU", "hint: tier=1&country=AU matches 1", 2),
        ("5", "tier=1", "5 copies asked, 3 storages match (perth-t1 bern-t1 cape-t1)", 2),
        ("2", "tier=1&(type=disk", "column 18: expected ')'", 2),
        ("0", "tier=1", "copies is 0", 2),
        ("-1", "tier=1", "copies is -1", 2),
    ],
)
def test_mistakes_are_met_half_way(
    admin: Admin, eb: World, copies: str, expression: str, message: str, status: int
) -> None:
    error = admin.error("rule", "add", "test:eb", f"--copies={copies}", "--on", expression, status=status)
    assert message in error


def test_a_rule_on_what_is_not_registered_is_refused(admin: Admin, eb: World) -> None:
    assert "test:nope' is not registered" in admin.error(
        "rule", "add", "test:nope", "--copies", "1", "--on", "tier=1", status=1
    )
    assert "there is no rule" in admin.error("rule", "show", "01234567-89ab-cdef-0123-456789abcdef", status=1)


def test_an_end_that_is_over_is_refused_and_nothing_is_declared(admin: Admin, eb: World) -> None:
    for words, field in ((("--expires", "2020-01-01"), "is over: it is"), (("--lifetime", "0d"), "over at once")):
        error = admin.error("rule", "add", "test:eb", "--copies", "2", "--on", "tier=1", *words, status=2)
        assert field in error and "to end a rule now: dlm-admin rule cancel" in error
    assert admin.lines("rule", "list") == []
    rule = declare(admin)
    assert "is over" in admin.error("rule", "set", rule, "--expires", "2020-01-01", status=2)
    assert "over at once" in admin.error("rule", "set", rule, "--lifetime", "0d", status=2)


def test_cancelling_says_how_long_one_can_change_ones_mind_and_the_second_time_that_it_has_ended(
    admin: Admin, eb: World
) -> None:
    rule = declare(admin)
    eb.settle()
    until = admin.run("rule", "cancel", rule).stdout
    assert "undo     until " in until and "declare a rule again and everything stays" in until
    assert f"rule {rule} has ended already" in admin("rule", "cancel", rule)
    eb.settle()
    declare(admin)
    eb.later(86_400 * 2)
    assert eb.count("perth-t1") + eb.count("bern-t1") + eb.count("cape-t1") == 60


def test_a_rule_that_stands_already_is_told_with_what_it_has_otherwise(admin: Admin, eb: World) -> None:
    rule = declare(admin, "--lifetime", "30d")
    words = ("rule", "add", "test:eb", "--copies", "2", "--on", "tier=1")
    error = admin.error(*words, status=1)
    assert "already, differently: ends " in error and f"dlm-admin rule set {rule} --lifetime" in error
    error = admin.error(*words, "--lifetime", "60d", "--spread", "site", "--grouping", "all", status=1)
    assert "spread none, not site, grouping dataset, not all" in error


def test_a_destination_that_cannot_be_written_shows_in_rule_storage_and_status(admin: Admin, eb: World) -> None:
    rule = str(admin.json("rule", "add", "test:eb", "--copies", "1", "--on", "bern-t1")["id"])
    eb.run(eb.judge)
    with eb.begin() as tx:  # as after a first attempt; tests may run as root, whom no directory refuses
        tx.run(
            """UPDATE request SET attempts = 1, next_attempt_at = %(now)s + interval '5 min',
                                  error_class = 'permission', error = 'create ' || did_id || ': Permission denied'"""
        )
    shown = admin("rule", "show", rule)
    assert shown.startswith(" replicating") and "reason   30 files wait: bern-t1: " in shown
    assert "waits       30 copies wait: permission (create " in admin("storage", "show", "bern-t1")
    status = admin("status")
    assert "bern-t1: 30 copies wait: " in status and "dlm-admin why storage bern-t1" in status
    assert "30 requests tried again now: 0 parked, 30 waiting" in admin("request", "retry", "--rule", rule)
    eb.settle()
    assert admin("rule", "show", rule).startswith(" ok")
    assert "waits" not in admin("storage", "show", "bern-t1")


def test_a_check_names_what_it_found_and_says_when_nobody_works(admin: Admin, eb: World) -> None:
    for number in range(12):
        eb.path("perth-t1", f"f{number}").unlink()
    error = admin.error("storage", "check", "perth-t1", "--timeout", "0s", status=75)
    assert "auditor never seen → dlm-admin up" in error
    eb.settle()
    client = Client(admin.environment["DLM_URL"], admin.environment["DLM_TOKEN"])
    text = storages.look_at_check(client, client.get("/storages/perth-t1/checks")["items"][0]["id"]).text
    assert text.startswith("stopped") and text.count("--confirm-lost") == 1
    assert text.count("test:f") == 10 and "and 2 more   dlm-admin storage findings perth-t1" in text
    assert admin("storage", "findings", "perth-t1").count("test:f") == 12
