"""A rule, a plan and a `why` in a person's words: pure, from the API's answers to lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlm.cli.output import Item, coloured, plain, safe
from dlm.cli.units import counted, shown_ago, shown_moment, shown_seconds, shown_size

LABEL = 11
MOST = 20  # storages and reasons that are told one by one


# ---------------------------------------------------------------------------------------------------------- rules


def labelled(label: str, text: str) -> str:
    """One line under its label, which is in the colour of the state it names."""
    return f" {coloured(f'{label:<{max(9, len(label) + 2)}}', label)}{safe(text)}"


def rule(item: Item, locks: Sequence[Item], following: Item, came_from: str | None = None) -> Iterator[str]:
    """What is promised, how far it is, why it is not further, what comes next, where to look."""
    progress = item["progress"]
    wish = f"{_copies(item)} of {counted(item['files'], 'file')} on {item['storages']}{_ways(item)}"
    yield labelled(item["state"], f"{wish}   {item['account']} · since {shown_ago(item['state_since'])}")
    yield labelled("", f"{item['did']}   {_held(progress, locks)}")
    words = [word for word in ("locked", "suspended") if item[word]]
    since = [f"from {shown_moment(item['starts_at'])}"] if item["starts_at"] else []
    until = [f"until {shown_moment(item['expires_at'])}"] if item["expires_at"] else []
    if facts := [fact for fact in (" ".join([*since, *until]), *words, item["comment"]) if fact]:
        yield labelled("", " · ".join(facts))
    if item["moves_to"] and item["state"] in ("letting_go", "gone"):
        yield labelled("moved", f"to rule {item['moves_to']}, which took its place")
    elif item["moves_to"]:
        yield labelled("moves", f"to rule {item['moves_to']}; it stays until that is ok")
    if came_from and not item["moves_from"]:
        yield labelled("moved", f"here from rule {came_from}, which let go in its favour")
    if item["moves_from"]:
        yield labelled("moves", f"here from rule {item['moves_from']}, which stays until this one is ok")
    if item["reason"]:
        yield labelled("reason", item["reason"])
    yield labelled("next", _next(following))
    look = [f"dlm-admin why {item['did']}"]
    if progress["files_stuck"]:
        look.append(f"dlm-admin request list --rule {item['id']} --state parked")
    yield labelled("look", "   ·   ".join(look))


def _ways(item: Item) -> str:
    """', spread site, grouping none, from type=source': what was asked beside how many and where."""
    asked = [f", {key} {item[key]}" for key in ("spread", "weight") if item[key]]
    asked += [f", grouping {item['grouping']}"] if item["grouping"] != "dataset" else []
    return "".join([*asked, f", copied only from {item['sources']}" if item["sources"] else ""])


def _copies(item: Item) -> str:
    return (
        "a copy everywhere"
        if item["copies"] == "*"
        else f"{item['copies']} {'copy' if item['copies'] == 1 else 'copies'}"
    )


def _held(progress: Item, locks: Sequence[Item]) -> str:
    """'119,988 files ok · 12 stuck at cape-t1'."""
    parts = [f"{progress['files_ok']:,} of {counted(progress['files'], 'replica')} ok"]
    if progress["files_stuck"]:
        places = sorted({lock["storage"] for lock in locks if lock["files_stuck"]})
        parts.append(f"{progress['files_stuck']:,} stuck" + (f" at {' '.join(places[:MOST])}" if places else ""))
    if progress["locks_to_fill"]:
        parts.append("still being laid out")
    return " · ".join(parts)


def _next(following: Item) -> str:
    return following["text"] if following["at"] is None else f"{shown_moment(following['at'])}  {following['text']}"


def end_of_watch(item: Item, locks: Sequence[Item], after_s: float) -> Iterator[str]:
    """The last line of a watch, or two when the rule did not come to be ok."""
    places = sorted({lock["storage"] for lock in locks})
    where = f", at {_and(places)}" if places else ""
    files = counted(item["files"], "file")
    if item["state"] == "ok":
        copies = len(places) if item["copies"] == "*" else item["copies"]
        noun = "verified copy" if copies == 1 else "verified copies"
        yield f"{labelled('ok', f'{copies} {noun} of {files}{where}')}   {shown_seconds(round(after_s, 1))}"
        return
    if item["state"] == "gone":
        yield labelled("gone", f"it has ended; {files} of {item['did']} are no longer held by it")
        return
    yield labelled(item["state"], item["reason"] or _held(item["progress"], locks))
    yield labelled("look", f"dlm-admin rule show {item['id']}   ·   dlm-admin why rule {item['id']}")


def _and(names: Sequence[str]) -> str:
    shown = list(names[:MOST])
    if len(names) > MOST:
        shown.append(f"{len(names) - MOST} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


# ----------------------------------------------------------------------------------------------------------- plan


def plan(item: Item) -> Iterator[str]:
    """What a rule would do, storage by storage."""
    kind = f"{item['kind']}, {counted(item['files'], 'file')}, {shown_size(item['size_bytes'])}"
    yield f" plan for {item['did']}   {kind}   (catalogue as of {shown_moment(item['at'])})"
    yield from _rows(
        "already there", [_there(place) for place in item["destinations"] if place["already_there"]["files"]]
    )
    yield from _rows("to copy", [row for place in item["destinations"] for row in _moves(place)])
    yield from _rows(
        "space after", [_space(place) for place in item["destinations"] if place["free_bytes_after"] is not None]
    )
    yield from _rows("not chosen", [[other["storage"], other["reason"]] for other in item["not_chosen"]])
    if item["starts_at"]:
        yield f"   {'begins':<16}{shown_moment(item['starts_at'])}; what is told is what it would do now"
    if item["impossible"]:
        yield f"   {coloured('impossible'.ljust(16), 'impossible')}{safe(item['impossible']['reason'] or '')}"
    held = sum(place["already_there"]["bytes"] + place["to_copy"]["bytes"] for place in item["destinations"])
    yield f"   {'charged':<16}{item['account']}  {shown_size(held)}"
    moved = item["transfers"]
    total = f"{counted(moved['files'], 'transfer')}, {shown_size(moved['bytes'])}"
    yield f" {total}   {_way_on(item)}"


def _way_on(item: Item) -> str:
    """What to do with the plan: one that cannot be kept as things are is not recommended."""
    if item["impossible"]:
        return "it cannot be kept as things are: ask for what can be, or add storages"
    if any(not source["storages"] for place in item["destinations"] for source in place["from"]):
        return "it cannot be kept as things are: no source can be read for some of it"
    return "declare it?  dlm-admin rule add … (same words)"


def _there(place: Item) -> list[str]:
    there = place["already_there"]
    return [place["storage"], counted(there["files"], "file"), shown_size(there["bytes"])]


def _moves(place: Item) -> Iterator[list[str]]:
    for source in place["from"]:
        names = " or ".join(source["storages"]) or "nowhere: no source can be read"
        yield [place["storage"], counted(source["files"], "file"), shown_size(source["bytes"]), f"from {names}"]


def _space(place: Item) -> list[str]:
    free = place["free_bytes_after"]
    return [place["storage"], f"{shown_size(free)} free" if free >= 0 else f"{shown_size(-free)} too little"]


def _rows(label: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows in aligned columns, the label before the first."""
    widths = [max(len(row[index]) for row in rows) for index in range(min(map(len, rows), default=0))]
    for number, row in enumerate(rows[:MOST]):
        cells = [f"{cell:<{widths[index]}}" if index < len(widths) else cell for index, cell in enumerate(row)]
        yield safe(f"   {label if number == 0 else '':<16}{'   '.join(cells)}").rstrip()
    if len(rows) > MOST:
        yield f"   {'':<16}and {len(rows) - MOST:,} more"


# ------------------------------------------------------------------------------------------------------------ why

SUBJECTS = ("did", "rule", "request", "storage")
_SHOWN_APART = {"chain", "next", *SUBJECTS}


def why(item: Item) -> Iterator[str]:
    """The chain of facts, each replica's own, and what happens next."""
    subject = next((key for key in SUBJECTS if key in item), "did")
    facts = [_fact(key, value) for key, value in item.items() if _is_fact(key, value)]
    yield safe(f" {item[subject]}   {' · '.join(facts)}".rstrip())
    yield from _chain(item["chain"], "   ")
    copies = item["replicas"] if isinstance(item.get("replicas"), list) else []  # of a storage: numbers by state
    for copy in copies:
        since = f"since {shown_moment(copy['since'])}"
        yield f"   {'replica':<{LABEL}}{copy['storage']}  {coloured(copy['state'])}  {since}{_elsewhere(copy)}"
        yield from _chain(copy["chain"], "     ")
        yield safe(f"     {'next':<{LABEL}}{_next(copy['next'])}")
    if not copies:
        yield safe(f"   {'next':<{LABEL}}{_next(item['next'])}")


def _is_fact(key: str, value: Any) -> bool:
    return key not in _SHOWN_APART and value not in (None, {}, []) and not isinstance(value, list)


def _fact(key: str, value: Any) -> str:
    """A fact in words: 'perth', 'is stuck', '12 of 30 replicas ok', 'replicas: 30 available'."""
    match key:
        case "state" | "kind" | "reason":
            return plain(value)
        case "is_available":
            return "available" if value else "unavailable"
        case "progress":
            return _held(value, ())
        case "replicas" | "requests":
            return f"{key}: {', '.join(f'{number:,} {state}' for state, number in value.items())}"
        case "tombstoned":
            return f"{counted(value, 'replica')} let go"
        case "attempts":
            return counted(value, "attempt")
        case "error_class":
            return str(value).replace("_", " ")
        case "deleted_at":
            return f"ended {shown_moment(value)}"
    return f"{key.replace('_', ' ')} {plain(value)}"


def _chain(steps: Sequence[Mapping[str, Any]], indent: str) -> Iterator[str]:
    last = None
    for step in steps:
        label = step["step"] if step["step"] != last else ""
        last = step["step"]
        when = shown_moment(step["at"]) if step["at"] else ""
        yield safe(f"{indent}{label:<{LABEL}}{when:<22}{step['text']}")


def _elsewhere(copy: Item) -> str:
    others = copy["verified_elsewhere"]
    return f"   {len(others)} verified elsewhere ({_and(others)})" if others else "   no verified copy elsewhere"
