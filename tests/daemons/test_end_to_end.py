"""The life of a promise over 2,000 real files, by real processes; once in peace, once with everything killed twice."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dlm.errors import Conflict
from processes import Service, serving

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

FILES = 2000
SEED = int(os.environ.get("DLM_TEST_SEED", "7"))
SETTINGS = {
    "database.pool_size": 3,
    "judge.interval_s": 0.5,
    "conveyor.interval_s": 0.5,
    "conveyor.lease_s": 8,
    "conveyor.backoff_base_s": 0.2,
    "reaper.interval_s": 0.5,
    "reaper.lease_s": 8,
    "reaper.undo_window_s": 1,
    "auditor.interval_s": 0.5,
    "auditor.lease_s": 8,
    "breaker.delete_share": 1,  # letting all go is the last act
}
VICTIMS = {
    "web": ("copying", "repairing", "reaping"),
    "judge": ("copying", "repairing", "reaping"),
    "conveyor": ("copying", "repairing"),
    "reaper": ("reaping",),
    "postgres": ("copying", "repairing", "reaping"),
}
Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def service(pytestconfig: pytest.Config) -> Iterator[Service]:
    with serving("processes", pytestconfig.getoption("--pg-bin"), SETTINGS) as service:
        yield service


@dataclass
class Kills:
    """What is killed when: by phase, (share of the phase that is done, victim), in order."""

    due: dict[str, list[tuple[float, str]]] = field(default_factory=dict)

    @classmethod
    def drawn(cls, seed: int) -> "Kills":
        """Two moments for each victim, drawn from the phases in which it has something to do."""
        dice = random.Random(seed)
        due: dict[str, list[tuple[float, str]]] = {}
        for victim, phases in VICTIMS.items():
            for _ in range(2):
                due.setdefault(dice.choice(phases), []).append((dice.uniform(0, 0.9), victim))
        return cls({phase: sorted(moments) for phase, moments in due.items()})

    def pop(self, phase: str, share: float) -> list[str]:
        """The victims whose moment has come."""
        moments = self.due.get(phase, [])
        self.due[phase] = [moment for moment in moments if moment[0] > share]
        return [victim for at, victim in moments if at <= share]


class Story:
    """One tree of files and the storages of its own, through all that can happen to them."""

    def __init__(self, service: Service, name: str, kills: Kills) -> None:
        self.service = service
        self.name = name
        self.kills = kills
        self.root = service.directory / name
        self.tree = self.root / "originals"
        self.perth, self.bern = self.root / "perth", self.root / "bern"
        self.rule = ""

    # -- asking ---------------------------------------------------------------------------------------------------

    def ask(self, question: Callable[[Any], Answer]) -> Answer:
        """The answer, asked again while the service is away."""
        answers: list[Answer] = []

        def is_answered() -> bool:
            answers.append(question(self.service.client))
            return True

        self.service.until("an answer", is_answered)
        return answers[-1]

    def through(self, phase: str, is_so: Callable[[], bool], share: Callable[[], float]) -> None:
        """Wait until it is so, and kill what is due on the way; what is still due at the end is killed then."""

        def kill_due() -> None:
            for victim in self.kills.pop(phase, share()):
                self.service.kill(victim)

        self.service.until(phase, is_so, kill_due)
        for victim in self.kills.pop(phase, 1.0):
            self.service.kill(victim)
        self.service.until(f"the end of {phase}", is_so)

    def state(self) -> str:
        return str(self.ask(lambda client: client.get(f"/rules/{self.rule}"))["state"])

    def is_ok(self) -> bool:
        return bool(self.service.client.get(f"/rules/{self.rule}")["state"] == "ok")

    def verify(self) -> None:
        """Catalogue and disks agree byte for byte, and every invariant holds."""
        self.service.admin("verify", "--files")
        assert digests(self.tree) == self.originals

    def storage(self, name: str) -> Any:
        return self.ask(lambda client: client.get(f"/storages/{name}-{self.name}"))

    def count(self, storage: str, state: str) -> int:
        return len(
            self.ask(lambda client: list(client.items("/replicas", storage=f"{storage}-{self.name}", state=state)))
        )

    def check(self, storage: str, confirm_lost: bool = False) -> Any:
        """The check of a storage, at its end."""
        body = {"with_checksum": True, "confirm_lost": confirm_lost}

        def start(client: Any) -> int:
            try:
                return int(client.post(f"/storages/{storage}-{self.name}/checks", body)["id"])
            except Conflict as error:  # the answer to an earlier call was lost
                return int(error.facts["audit"])

        number = self.ask(start)
        self.service.until("the check", lambda: self.service.client.get(f"/checks/{number}")["state"] != "running")
        return self.ask(lambda client: client.get(f"/checks/{number}"))

    # -- what happens ---------------------------------------------------------------------------------------------

    def build(self) -> None:
        make_tree(self.tree)
        self.originals = digests(self.tree)
        client = self.service.client
        for site in ("perth", "bern", "here"):
            client.post("/sites", {"name": f"{site}-{self.name}"})
        for storage, site, facts in (
            ("perth", "perth", {}),
            ("bern", "bern", {}),
            ("originals", "here", {"can_write": False, "can_delete": False, "reason": "originals", "type": "original"}),
        ):
            protocols = [{"scheme": "posix", "prefix": str(self.root / storage)}]
            named = {"name": f"{storage}-{self.name}", "site": f"{site}-{self.name}", "protocols": protocols}
            client.post("/storages", named | facts)
            if not facts:
                client.patch(f"/storages/{storage}-{self.name}/attributes", {"story": self.name})

    def register(self) -> None:
        client = self.service.client
        client.post("/scopes", {"name": self.name})
        client.post("/dids", {"did": f"{self.name}:all"})
        files = [{"name": path, "path": path, "size_bytes": len_} for path, (len_, _) in self.originals.items()]
        call = {"storage": f"originals-{self.name}", "scope": self.name, "dataset": f"{self.name}:all", "files": files}
        assert client.post("/replicas", call)["new_replicas"] == FILES
        self.verify()

    def declare(self) -> None:
        wish = {"did": f"{self.name}:all", "copies": 2, "storages": f"story={self.name}", "spread": "site"}
        key = {"Idempotency-Key": self.name}
        self.rule = self.ask(lambda client: client.post("/rules", wish, key))["id"]
        self.through("copying", self.is_ok, lambda: (files_in(self.perth) + files_in(self.bern)) / (2 * FILES))
        assert (self.count("perth", "available"), self.count("bern", "available")) == (FILES, FILES)
        self.verify()

    def lose_contents(self) -> None:
        """All files of a storage go, its marker stays: the breaker opens, and a person's word declares them lost."""
        for path in self.bern.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        stopped = self.check("bern")
        assert stopped["state"] == "stopped"
        assert "--confirm-lost" in stopped["message"]
        breakers = self.ask(lambda client: client.get("/breakers"))["items"]
        assert [b["act"] for b in breakers if b["storage"] == f"bern-{self.name}"] == ["loss"]
        assert self.count("bern", "available") == FILES
        assert self.check("bern", confirm_lost=True)["state"] == "done"
        self.through(
            "repairing", lambda: files_in(self.bern) == FILES and self.is_ok(), lambda: files_in(self.bern) / FILES
        )
        assert self.ask(lambda client: client.get("/breakers"))["items"] == []
        self.verify()

    def lose_root(self) -> None:
        """A storage's root goes away: it is unavailable, nothing is lost; back, it goes on."""
        away = self.perth.rename(self.root / "perth-away")
        assert self.check("perth")["state"] == "unavailable"
        assert not self.storage("perth")["is_available"]
        assert self.count("perth", "available") == FILES
        assert self.state() == "ok"
        away.rename(self.perth)
        assert self.check("perth")["state"] == "done"
        self.service.until("the storage to be back", lambda: self.storage("perth")["is_available"])
        assert self.count("perth", "available") == FILES
        self.verify()

    def let_go(self) -> None:
        self.ask(lambda client: client.delete(f"/rules/{self.rule}"))
        left = lambda: files_in(self.perth) + files_in(self.bern)  # noqa: E731  used twice, below only
        self.through("reaping", lambda: self.is_empty() and left() == 0, lambda: 1 - left() / (2 * FILES))
        assert self.state() == "gone"
        assert self.count("originals", "lost") + self.count("originals", "bad") == 0
        self.verify()

    def is_empty(self) -> bool:
        """Nothing is used, reserved or charged at the storages that dlm filled."""
        client = self.service.client
        used = {item["storage"]: item for item in client.get("/usage/storages")["items"]}
        rows = [used[f"{storage}-{self.name}"] for storage in ("perth", "bern")]
        charged = [item for item in client.get("/usage/accounts")["items"] if item["storage"].endswith(f"-{self.name}")]
        is_used = any(row["used_files"] or row["used_bytes"] or row["reserved_bytes"] for row in rows)
        return not is_used and not any(item["charged_files"] for item in charged)


def make_tree(root: Path) -> None:
    """2,000 files of 0 to 4 kB in a tree, the same for every run; some names are not ASCII."""
    dice = random.Random(2000)
    for number in range(FILES):
        folder = root / f"run {number % 7}" / ("é" if number % 11 == 0 else f"part.{number % 13}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number:04}.dat").write_bytes(dice.randbytes(dice.randrange(4000)) if number % 50 else b"")


def digests(root: Path) -> dict[str, tuple[int, str]]:
    """Size and digest of every file below the root, by path."""
    contents = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in contents.items()}


def files_in(root: Path) -> int:
    """How many files of others than dlm itself stand below the root."""
    number = 0
    for directory, below, names in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".dlm-")]
        number += sum(not name.startswith(".dlm-") for name in names)
        del directory
    return number


@pytest.mark.parametrize("name", ["calm", "killed"])
def test_a_promise_is_kept_through_loss_and_let_go_without_a_trace(service: Service, name: str) -> None:
    story = Story(service, name, Kills.drawn(SEED) if name == "killed" else Kills())
    service.killed.clear()
    story.build()
    story.register()
    story.declare()
    story.lose_contents()
    story.lose_root()
    story.let_go()
    expected = Counter(dict.fromkeys(VICTIMS, 2)) if name == "killed" else Counter()
    assert Counter(service.killed) == expected


def test_the_seeded_moments_are_two_for_each() -> None:
    drawn = Kills.drawn(SEED)
    assert Counter(victim for moments in drawn.due.values() for _, victim in moments) == Counter(
        dict.fromkeys(VICTIMS, 2)
    )
