"""What tests of daemons share: storages with files on them, and something that happens when a point is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlm import effects
from dlm.db.engine import Database
from shelves import Shelves


@pytest.fixture
def shelves(database: Database, tmp_path: Path) -> Shelves:
    return Shelves(database, tmp_path)


@pytest.fixture
def at() -> Iterator[Callable[[str, Callable[[], None]], None]]:
    """Install something to happen once when a point is reached."""

    def install(name: str, act: Callable[[], None]) -> None:
        def handler(reached: str) -> None:
            if reached == name:
                effects.install(None)
                act()

        effects.install(handler)

    yield install
    effects.install(None)
