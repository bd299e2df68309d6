"""What tests of races share; a file whose world is another one says so itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm import effects
from dlm.clock import ManualClock
from dlm.daemons.judge import Judge
from dlm.db.engine import Database
from gates import racing_world
from world import World


@pytest.fixture
def world(database: Database, clock: ManualClock, tmp_path: Path) -> Iterator[World]:
    """Storages a and b, and origin, which holds the files; whatever a test does at an effects point ends with it."""
    yield racing_world(database, clock, tmp_path)
    effects.install(None)


@pytest.fixture
def other(world: World) -> Judge:
    """A second judge."""
    return Judge(world.database, world.settings)
