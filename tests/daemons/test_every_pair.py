"""A promise kept between every two kinds of storage, each spoken to on a real server with a secret known by its name.

One world has them all: from each kind a dataset to each kind, promised, moved, verified, spoiled, repaired, let go.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm.clock import ManualClock
from dlm.core import credentials, dids, files, replicas, roots, secrets, sites
from dlm.core.storages import NewProtocol, NewStorage
from dlm.db.engine import Database
from dlm.did import derived_path
from dlm.errors import InvalidInput
from dlm.gfal import extension
from dlm.protocols import StorageProtocol, open_protocol
from protocols.servers import Place, rclone_serves, sshd
from protocols.xrootd import xrootd_reachable
from world import DAY, SCOPE, World

pytest.importorskip("botocore", reason="botocore is not installed: pip install 'dlm[s3]'")
pytest.importorskip("asyncssh", reason="asyncssh is not installed: pip install 'dlm[sftp]'")
pytestmark = [pytest.mark.protocols, pytest.mark.timeout(300)]

COUNT = itertools.count(1)
KINDS = ("posix", "s3", "webdav", "sftp")
if extension.is_there() and shutil.which("xrootd"):  # else the tests of root:// say what to install
    KINDS += ("xrootd",)
PAIRS = [(one, other) for one in KINDS for other in KINDS]
SIZES = {"empty": 0, "small": 1000, "parts": (5 << 20) + 3}  # the last in more than one part, where there are parts
CYCLE_S = 34 * DAY  # by then every copy is verified again: 30 days and a tenth


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """A running server of each kind; without OpenSSH rclone speaks SFTP."""
    base = tmp_path_factory.mktemp("servers")
    for name in ("s3", "webdav", "sftp", "files"):
        (base / name / "data").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        served = {
            what: stack.enter_context(rclone_serves(what, base / what, serving=base / what / "data"))
            for what in ("s3", "webdav", *(() if shutil.which("sshd", path="/usr/sbin:/usr/bin") else ("sftp",)))
        }
        if "sftp" not in served:
            served["sftp"] = stack.enter_context(sshd(base / "sftp", serving=base / "sftp" / "data"))
        if "xrootd" in KINDS:
            served["xrootd"] = stack.enter_context(xrootd_reachable(base))
        yield {"posix": Place("posix", str(base / "files"), {}, base / "files", {}), **served}


class Everywhere:
    """The world, with the storages from-KIND and to-KIND of each kind."""

    def __init__(self, world: World, places: dict[str, Place]) -> None:
        self.world, self.places = world, places
        self.below = f"world-{next(COUNT)}"  # the servers outlive it
        self.contents: dict[str, bytes] = {}
        with world.begin() as tx:
            sites.add_site(tx, "here")
            for kind in (kind for kind in KINDS if places[kind].secret):
                secrets.add_secret(tx, f"{kind}-secret", places[kind].secret)
        for kind in KINDS:
            self.add(f"from-{kind}", kind, type="source")
            self.add(f"to-{kind}", kind, attributes={"kind": kind})

    def add(self, name: str, kind: str, path: str | None = None, **facts: object) -> None:
        """Add a storage on the server of that kind, its root there at the path, else at its name."""
        place, path = self.places[kind], name if path is None else path
        way = NewProtocol(
            place.scheme, f"{place.prefix}/{self.below}/{path}".rstrip("/"),
            f"{kind}-secret" if place.secret else None, options=place.options,
        )  # fmt: skip
        roots.add_storage(self.world.begin, NewStorage(name, "here", [way], **facts))  # type: ignore[arg-type]

    def speak(self, storage: str) -> StorageProtocol:
        storage_id = self.world.storage_id(storage)
        with self.world.begin() as tx:
            ref = credentials.refs(tx, [storage_id])[storage_id]
        return open_protocol(ref)

    def give(self, source: str, dataset: str) -> None:
        """Write files at the source, as a producer does, and register them in the dataset."""
        items = []
        with self.speak(source) as storage:
            for name, size in SIZES.items():
                name, content = f"{dataset}.{name}", os.urandom(size)
                storage.write(derived_path(SCOPE, name), [content], attempt="0")
                self.contents[name] = content
                items.append({"name": name, "size_bytes": size, "adler32": f"{zlib.adler32(content):08x}"})
        with self.world.begin() as tx:
            dids.add_collections(tx, [dids.NewCollection(SCOPE, dataset)])
            replicas.register(tx, source, files.read(items, SCOPE), dataset=(SCOPE, dataset))

    def differing(self) -> list[str]:
        """Where a file's sha256 is another than its content's, at the source or at the destination, told by each."""
        wrong = []
        for source, destination in PAIRS:
            with self.speak(f"from-{source}") as near, self.speak(f"to-{destination}") as far:
                for name in (f"{source}.{destination}.{size}" for size in SIZES):
                    expected = hashlib.sha256(self.contents[name]).hexdigest()
                    for storage in (near, far):
                        if storage.checksum(derived_path(SCOPE, name), ("sha256",)).sha256 != expected:
                            wrong.append(f"{name} at {storage.ref.storage_name}")
        return wrong

    def spoil(self, kind: str, name: str) -> None:
        """Change a byte of what the server of the destination has, behind its back."""
        bucket = "bucket/" if kind == "s3" else ""
        root = self.places[kind].directory / f"{bucket}{self.below}/to-{kind}"
        file = root / derived_path(SCOPE, name)
        content = self.contents[name]
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def held(self, storage: str) -> int:
        with self.speak(storage) as spoken:
            return sum(1 for _ in spoken.list())


@pytest.fixture
def everywhere(database: Database, clock: ManualClock, tmp_path: Path, places: dict[str, Place]) -> Everywhere:
    return Everywhere(World(database, clock, tmp_path, breaker_delete_share=1, breaker_loss_share=1), places)


def test_a_promise_is_kept_between_every_two_kinds_of_storage(everywhere: Everywhere) -> None:
    world = everywhere.world
    for source, destination in PAIRS:
        everywhere.give(f"from-{source}", f"{source}.{destination}")
    rules = {pair: world.declare(".".join(pair), 1, f"kind={pair[1]}") for pair in PAIRS}

    world.settle()
    assert {pair: world.state(rule) for pair, rule in rules.items()} == dict.fromkeys(PAIRS, "ok")
    assert everywhere.differing() == []
    world.check()

    for source, destination in PAIRS:
        everywhere.spoil(destination, f"{source}.{destination}.small")
    world.later(CYCLE_S)
    assert {pair: world.state(rule) for pair, rule in rules.items()} == dict.fromkeys(PAIRS, "ok")
    assert everywhere.differing() == []

    for rule in rules.values():
        world.cancel(rule)
    world.settle()
    world.later(2 * DAY)
    world.later(DAY)
    world.check()
    count = len(SIZES) * len(KINDS)
    assert {kind: everywhere.held(f"to-{kind}") for kind in KINDS} == dict.fromkeys(KINDS, 0)
    assert {kind: everywhere.held(f"from-{kind}") for kind in KINDS} == dict.fromkeys(KINDS, count)


def test_no_root_lies_in_or_around_another_on_any_kind_of_storage(everywhere: Everywhere) -> None:
    for kind in KINDS:
        with pytest.raises(InvalidInput, match=f"lies in the root of storage to-{kind}") as caught:
            everywhere.add(f"in-{kind}", kind, f"to-{kind}/deeper")
        assert caught.value.field == "prefix"
        with pytest.raises(InvalidInput, match="contains the root of storage"):
            everywhere.add(f"around-{kind}", kind, "")
