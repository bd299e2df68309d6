"""The blast-radius breaker's arithmetic: how many files of a storage may be deleted, or declared lost, in a window."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a window may do to one storage before a person is asked (settings of [breaker])."""

    loss_share: float
    delete_share: float
    delete_files: int  # more deletions trip whatever the share
    floor_files: int  # so few trip never
    window_s: float


def allowed(act: str, files_on_storage: int, limits: Limits) -> int:
    """How many files a window may delete (`delete`) or declare bad or lost (`loss`) on a storage of that size."""
    share = limits.loss_share if act == "loss" else limits.delete_share
    most = max(limits.floor_files, int(share * files_on_storage))
    return min(most, limits.delete_files) if act == "delete" else most


def budget(act: str, files_in_window: int, files_on_storage: int, limits: Limits) -> int:
    """How many files more the window may take.

    `files_on_storage` is the present number; what the window took already is added again, so that the share is of
    the storage as it was when the window began and does not shrink while it is used.
    """
    return max(0, allowed(act, files_on_storage + files_in_window, limits) - files_in_window)


def trips(act: str, files_in_window: int, batch: int, files_on_storage: int, limits: Limits) -> str | None:
    """The reason, with its arithmetic, why `batch` more files open the breaker; None if the window allows them.

    `files_on_storage` counts as in `budget`. For losses the window's files stand on the storage still, as bad, or
    have left it, as lost; taking both as gone errs on the generous side by no more than the window itself.
    """
    if batch <= budget(act, files_in_window, files_on_storage, limits):
        return None
    total = files_on_storage + files_in_window
    most = allowed(act, total, limits)
    why, window = _why(act, most, limits), f"within {limits.window_s:,.0f} s"
    if act == "delete":  # what the window has room for goes still: only the others are held
        gone = files_in_window + budget(act, files_in_window, files_on_storage, limits)
        held = files_in_window + batch - gone
        return f"{gone:,} of {total:,} files deleted {window}, all that are allowed ({why}); {held:,} or more others are held"
    percent = 100 * (files_in_window + batch) / max(1, total)
    return f"{files_in_window + batch:,} of {total:,} files bad or lost {window} ({percent:.1f} %); {most:,} are allowed ({why})"


def _why(act: str, most: int, limits: Limits) -> str:
    if act == "delete" and most == limits.delete_files:
        return "the limit in files"
    if most == limits.floor_files:
        return "the floor in files"
    return f"{100 * (limits.loss_share if act == 'loss' else limits.delete_share):g} % of the storage"
