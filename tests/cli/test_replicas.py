"""`dlm-admin replica`: what is where, and saying that one is bad."""

from __future__ import annotations

from cli.conftest import Admin
from world import World


def test_replicas_are_listed_by_did_and_by_storage(admin: Admin, world: World) -> None:
    world.add_storage("perth-disk")
    names = world.many("perth-disk", 3)
    assert {item["did"] for item in admin.lines("replica", "list", "test:ds")} == {f"test:{name}" for name in names}
    assert len(admin.lines("replica", "list", "--storage", "perth-disk", "--state", "unverified")) == 3
    assert admin("replica", "list", "--storage", "perth-disk", "--state", "bad") == "no replicas\n"
    assert "a DID, or --storage" in admin.error("replica", "list", status=2)
    assert "goes with --storage" in admin.error("replica", "list", "test:ds", "--state", "bad", status=2)


def test_a_replica_that_is_declared_bad_is_repaired_from_a_good_one(admin: Admin, world: World) -> None:
    for storage, site in (("perth-disk", "perth"), ("bern-disk", "bern")):
        world.add_storage(storage, site)
    (name,) = world.many("perth-disk", 1, verified=True)
    world.declare("ds", 2, "type=disk")
    world.settle()
    said = admin("replica", "bad", f"test:{name}", "--storage", "bern-disk", "--reason", "it shows garbage")
    assert said == "1 replica at bern-disk declared bad\n"
    again = admin("replica", "bad", f"test:{name}", "--storage", "bern-disk", "--reason", "indeed")
    assert again == "0 replicas at bern-disk declared bad, 1 were known as such\n"
    assert world.where(name)["bern-disk"] == "bad"
    world.settle()
    assert world.where(name)["bern-disk"] == "available"
    assert "is not registered" in admin.error(
        "replica", "bad", "test:ds2", "--storage", "bern-disk", "--reason", "x", status=1
    )
