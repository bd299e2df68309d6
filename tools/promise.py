"""The life of one promise, shown: declared and kept, broken behind dlm's back and mended, explained, let go."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from said import say, timed

from dlm.cli.client import Client, at
from dlm.cli.progress import Look, Rate, display, measured
from dlm.cli.units import counted, shown_size
from dlm.core.expression import canonical, parse
from dlm.errors import DlmError

STORAGES = ("perth-disk", "perth-vault", "bern-disk", "bern-vault")
ON = "|".join(STORAGES)  # by name, so that no storage of the user's ever matches
MADE_BY = "tools/quickstart"
COMMENT = f"made by {MADE_BY}, which cancels it again"
WANTED = ("--copies", "2", "--on", ON, "--spread", "site", "--lifetime", "365d", "--comment", COMMENT)
STALLED_S = 120.0  # without any progress: something is wrong, and waiting longer would only hide it
LOOK_S = 0.25
LOST_SHARE, LOST_MOST = 0.012, 40


class Broken(DlmError):
    """What the tour promises did not happen."""


def live_rules(client: Client, did: str, *, is_own: bool) -> list[Any]:
    """The rules on the DID that have not ended: the tour's own, or those of others."""
    rules = [rule for rule in client.items("/rules", did=did) if rule["state"] not in ("letting_go", "gone")]
    return [rule for rule in rules if made_here(rule) == is_own]


def made_here(rule: dict[str, Any]) -> bool:
    """True for a rule that a tour declared: it says so, and asks for the tour's storages by name."""
    return bool(rule["comment"] == COMMENT and rule["storages"] == canonical(parse(ON)))


class Promise:
    """One rule over the dataset `did`, whose copies stand below `storages`."""

    def __init__(self, client: Client, admin: Callable[..., list[str]], storages: Path, did: str, files: int) -> None:
        self.client = client
        self.admin = admin
        self.storages = storages
        self.did = did
        self.files = files
        self.rule = ""
        self.lost = ""  # a file that went through it all

    # -- kept -----------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Declare the rule, or take the one that an earlier tour left, and wait until it is ok."""
        began = time.monotonic()
        say(" A promise: two copies, at two different sites, for a year")
        standing = live_rules(self.client, self.did, is_own=True)
        if standing:
            self.rule = standing[0]["id"]
            say(f"   rule {self.rule} stands since an earlier tour")
        else:
            self.rule = self.asked("rule", "add", self.did, *WANTED)["id"]
            say(f"   rule {self.rule}  {self.did}  2 × {ON}  spread site")
        others = live_rules(self.client, self.did, is_own=False)
        if others:
            say(f"   {counted(len(others), 'rule')} of yours on it: the tour leaves what is not its own alone")
        self.wait(self.look_at_rule)
        seconds = time.monotonic() - began
        sites = " and ".join(sorted({name.split("-")[0] for name in self.places()}))
        say(timed(f"   ok       2 verified copies of {counted(self.files, 'file')}, at {sites}", seconds))
        say()

    def look_at_rule(self) -> Look:
        rule = self.client.get(f"/rules/{self.rule}")
        seen = rule["progress"]
        if rule["state"] in ("impossible", "suspended", "letting_go", "gone"):
            raise Broken(f"the rule is {rule['state']}: {rule['reason']}", hint=f"dlm-admin rule show {self.rule}")
        word = "copying" if rule["state"] == "replicating" else rule["state"]
        look = Look(word, seen["files_ok"], seen["files"], is_over=rule["state"] == "ok", text=rule["reason"] or "")
        look.facts = (rule["state"], rule["reason"], seen)
        return look

    def places(self) -> list[str]:
        """The storages at which the rule holds its copies."""
        return sorted({lock["storage"] for lock in self.client.items(f"/rules/{self.rule}/locks")})

    # -- broken and mended ----------------------------------------------------------------------------------------

    def break_and_mend(self) -> None:
        """Remove some files of one storage behind dlm's back, have it checked, and wait until all are there again."""
        storage = next(name for name in self.places() if name.startswith("bern"))
        paths = self.remove_some(storage)
        verb = "vanishes" if len(paths) == 1 else "vanish"
        say(f" Something breaks: {counted(len(paths), 'file')} {verb} from {storage} behind dlm's back")
        began = time.monotonic()
        check = self.asked("storage", "check", storage)
        if check["missing"] != len(paths) or check["state"] != "done":
            found = f"{check['state']} and found {check['missing']} missing of {len(paths)} removed"
            raise Broken(f"the check of {storage} is {found}")
        self.wait(lambda: self.look_at_files(paths))
        self.wait(self.look_at_rule)
        share = 100 * len(paths) / max(1, check["files"])
        found = f"{len(paths):,} missing at {storage} ({share:.1f} % of it; the breaker opens at 10 %)"
        say(
            timed(f"   auditor  {found} → declared lost → copied again from a good copy → ok", time.monotonic() - began)
        )
        say()

    def remove_some(self, storage: str) -> list[Path]:
        """The files removed: 1.2 % of them, spread over all, at least one and at most 40."""
        there = [one for one in self.replicas() if one["storage"] == storage and one["state"] == "available"]
        number = min(LOST_MOST, max(1, int(LOST_SHARE * len(there))))
        chosen = there[:: max(1, len(there) // number)][:number]
        paths = [self.storages / storage / replica["path"] for replica in chosen]
        for path in paths:
            path.unlink()
        self.lost = str(chosen[0]["did"])
        return paths

    def look_at_files(self, paths: Sequence[Path]) -> Look:
        there = sum(path.exists() for path in paths)
        return Look("repairing", there, len(paths), is_over=there == len(paths), facts=there)

    # -- explained ------------------------------------------------------------------------------------------------

    def explain(self) -> None:
        """Show what a second rule would do, and why a file that was lost is where it is."""
        say(" What would a third copy take?")
        site, kind = next(name for name in STORAGES if name not in self.places()).split("-")
        self.shown("rule", "plan", self.did, "--copies", "1", "--on", f"{site}-{kind}")
        say(" Why is a file where it is?")
        self.shown("why", self.lost)

    # -- let go ---------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Cancel the rule and wait until what it alone held is deleted, on disk too."""
        began = time.monotonic()
        self.close_breakers()
        made = self.copies()
        self.asked("rule", "cancel", self.rule)
        self.wait(lambda: self.look_at_copies(len(made)))
        gone = made - self.copies()
        left = [str(path) for path in (self.storages / name / path for name, path in gone) if path.exists()]
        if left:
            raise Broken(f"{counted(len(left), 'file')} that the catalogue says are deleted are there, e.g. {left[0]}")
        number = counted(len(gone), "replica")
        story = f"rule cancelled → {number} wait 5 s in the undo window → deleted, each with its proof"
        kept = f" · {len(made) - len(gone):,} stay: rules of yours hold them" if len(gone) < len(made) else ""
        say(timed(f" Letting go: {story} → usage {shown_size(self.used())}{kept}", time.monotonic() - began))

    def close_breakers(self) -> None:
        """Let deletions go on at the tour's storages, where a tour that was interrupted may have been stopped."""
        for breaker in self.client.get("/breakers")["items"]:
            if breaker["act"] == "delete" and breaker["storage"] in STORAGES:
                self.client.delete(f"/breakers/{breaker['id']}")

    def copies(self) -> set[tuple[str, str]]:
        """(storage, path) of every replica that the dataset's files have at the tour's storages."""
        return {(replica["storage"], replica["path"]) for replica in self.replicas()}

    def replicas(self) -> list[Any]:
        """The dataset's replicas at the tour's storages; the row of a deleted one may rest for a while."""
        every = self.client.items(at("replicas", self.did))
        return [one for one in every if one["storage"] in STORAGES and one["state"] != "deleted"]

    def used(self) -> int:
        """The bytes on the storages, and those promised to come; others' rules may have some there."""
        items = self.client.get("/usage/storages")["items"]
        return sum(item["used_bytes"] + item["reserved_bytes"] for item in items if item["storage"] in STORAGES)

    def look_at_copies(self, total: int) -> Look:
        """How many are gone. What has no tombstone once the rule is gone is held by another rule."""
        has_ended = self.client.get(f"/rules/{self.rule}")["state"] == "gone"
        there = self.replicas()
        dying = sum(one["tombstone_at"] is not None for one in there)
        breakers = self.client.get("/breakers")["items"]
        held = "; ".join(breaker["reason"] for breaker in breakers if breaker["act"] == "delete")
        gone, is_over = total - len(there), has_ended and not dying
        facts = (has_ended, dying, gone)
        return Look("letting go", gone, total, noun="replicas", is_over=is_over, text=held, facts=facts)

    # -- running and waiting --------------------------------------------------------------------------------------

    def asked(self, *words: str) -> Any:
        """The command shown, run, and what it answered as the machine's JSON (the last object)."""
        say("   $ " + shown_command(words))
        ended = subprocess.run(self.admin(*words, "--json"), capture_output=True, text=True)
        if ended.returncode:
            raise Broken(f"dlm-admin {' '.join(words)}: {ended.stderr.strip() or ended.stdout.strip()}")
        return json.loads(ended.stdout.splitlines()[-1])

    def shown(self, *words: str) -> None:
        """The command and its output, as a person would see them."""
        say("   $ " + shown_command(words))
        ended = subprocess.run(self.admin(*words), capture_output=True, text=True)
        if ended.returncode:
            raise Broken(f"dlm-admin {' '.join(words)}: {ended.stderr.strip()}")
        for line in ended.stdout.rstrip().splitlines():
            say(f"   {line}".rstrip())
        say()

    def wait(self, look: Callable[[], Look]) -> Look:
        """Look until it is over, with a bar on a terminal; Broken when nothing moves for long."""
        rate, seen, since = Rate(), None, time.monotonic()
        with display(quiet=not sys.stderr.isatty()) as shown:
            while True:
                last = look()
                now = time.monotonic()
                if last.is_over:
                    return last
                if last.facts != seen:
                    seen, since = last.facts, now
                if now - since > STALLED_S:
                    far = f"{last.done:,} of {last.total:,} {last.noun}"
                    raise Broken(f"{last.word}: {far}, and nothing moves for {STALLED_S:.0f} s. {last.text}")
                if sys.stderr.isatty():
                    shown.show(last, measured(last, rate.note(now, last.done)))
                time.sleep(LOOK_S)


def shown_command(words: Sequence[str]) -> str:
    """The command as a person types it."""
    return shlex.join(["dlm-admin", *words])
