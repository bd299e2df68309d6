"""Who may import whom: the contracts of setup.cfg, and what planners reach in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

CHECKOUT = Path(__file__).parents[2]
PLANNERS = {f"dlm.core.{stem}" for stem in ("caret", "expression", "query", "placement", "judge", "conveyor", "reaper")}
NOUNS = {"dlm", "dlm.core", "dlm.types", "dlm.errors"}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("dlm", include_external_packages=True, cache_dir=None)


def test_the_contracts_hold() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT / "lib")}
    run = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("planner", sorted(PLANNERS))
def test_a_planner_reaches_nothing_but_nouns_and_planners(graph: grimp.ImportGraph, planner: str) -> None:
    reached = {name for name in graph.find_upstream_modules(planner) if name.partition(".")[0] == "dlm"}
    assert reached <= PLANNERS | NOUNS


@pytest.mark.parametrize("planner", sorted(PLANNERS))
def test_a_planner_uses_the_standard_library_only(graph: grimp.ImportGraph, planner: str) -> None:
    used = {name.partition(".")[0] for name in graph.find_upstream_modules(planner)} - {"dlm"}
    assert used <= sys.stdlib_module_names
    assert not used & {"random", "secrets", "time", "os", "socket"}
