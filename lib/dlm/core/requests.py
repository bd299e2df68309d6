"""Use cases around requests: which files are on their way or stuck, and trying them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from dlm import did as codec
from dlm.core import dids, rules, storages
from dlm.core.conveyor import request_id_from_uuid, request_uuid
from dlm.db import events, requests
from dlm.db.engine import Tx
from dlm.errors import Conflict
from dlm.types import Page, RequestState

__all__ = ["Which", "get_request", "list_requests", "request_uuid", "retry", "retry_one"]


@dataclass(frozen=True, slots=True)
class Which:
    """Which requests, by the names people use; None stands for any. `did` may be a dataset."""

    rule: str | None = None
    storage: str | None = None
    did: str | None = None
    state: RequestState | None = None


def list_requests(tx: Tx, which: Which, page: Page) -> tuple[Sequence[Row[Any]], str | None]:
    """(requests by number, cursor of the next page)."""
    return requests.list_requests(tx, _filters(tx, which), page)


def get_request(tx: Tx, uuid: str) -> tuple[Row[Any], Sequence[Row[Any]]]:
    """(the request, its attempts so far, newest first). One that is done or cancelled is NotFound."""
    row = requests.get(tx, request_id_from_uuid(uuid))
    return row, requests.attempts_of(tx, row.did_id, row.storage_id)


def retry(tx: Tx, which: Which) -> tuple[int, int]:
    """Try those that are parked or wait again now, with all their attempts: (how many were parked, how many waited)."""
    parked, waited = requests.retry(tx, _filters(tx, which))
    if parked or waited:
        asked = {key: value for key in ("rule", "storage", "did") if (value := getattr(which, key))}
        events.record(tx, "request", 0, "retried", after={"parked": parked, "waited": waited, **asked})
    return parked, waited


def retry_one(tx: Tx, uuid: str) -> None:
    """Try a request that is parked or waits again now. Conflict when it is on its way, or due."""
    row = requests.get(tx, request_id_from_uuid(uuid))
    if not any(requests.retry(tx, requests.Filters(ids=[row.id]))):
        state = "being copied" if row.state == RequestState.ACTIVE else "due"
        raise Conflict(f"request {uuid} is {state} already", field="request", hint="see: dlm-admin daemon status")
    events.record(tx, "request", row.id, "retried", before={"error_class": row.error_class, "error": row.error})


def _filters(tx: Tx, which: Which) -> requests.Filters:
    return requests.Filters(
        rule_id=None if which.rule is None else rules.require(tx, which.rule).id,
        storage_id=None if which.storage is None else storages.get_storage(tx, which.storage).id,
        did_id=None if which.did is None else dids.get(tx, *codec.parse(which.did)).id,
        state=which.state,
    )
