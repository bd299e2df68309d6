"""Bounded fuzzing of every operation from its own description: whatever is sent, no 5xx and no undescribed answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from dlm.config import Settings
from dlm.db.engine import Database
from dlm.web.app import create_app
from web.conftest import Caller, caller

EXAMPLES = 12
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# What the world of a test has, so that some calls get beyond 404.
KNOWN = {"account": "root", "scope": "ska", "name": "set", "site": "perth", "storage": "perth-disk", "slug": "denied"}


def described(database: Database) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_wsgi("/api/v1/openapi.json", create_app(database, Settings()))


def operations() -> list[tuple[str, str]]:
    """(path, method) of every operation; a database is not needed to know them."""
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    found = [result.ok() for result in described(database).get_all_operations()]
    database.dispose()
    return [(operation.path, operation.method.upper()) for operation in found]


def furnish(admin: Caller, tmp_path: Path) -> None:
    """A storage, a dataset with a file, a rule."""
    way = {"scheme": "posix", "prefix": str(tmp_path / "perth")}
    admin.post("/sites", {"name": "perth"})
    admin.post("/storages", {"name": "perth-disk", "site": "perth", "protocols": [way]})
    admin.post("/scopes", {"name": "ska"})
    admin.post("/dids", {"did": "ska:set"})
    files = [{"name": "set/1", "size_bytes": 1}]
    admin.post("/replicas", {"storage": "perth-disk", "scope": "ska", "dataset": "ska:set", "files": files})
    admin.post("/rules", {"did": "ska:set", "copies": 1, "storages": "*"})


@pytest.mark.parametrize(("path", "method"), operations())
def test_whatever_is_sent_the_answer_is_one_that_is_described(
    database: Database, tmp_path: Path, path: str, method: str
) -> None:
    schema = described(database)
    admin = caller(schema.app, database, "root", "admin")
    if (path, method) != ("/api/v1/storages", "POST"):  # with no site there, no root is ever made
        furnish(admin, tmp_path)
    operation = schema[path][method]
    # A wrong query is not asked to be refused here: what makes it wrong may not survive being written as a query.
    checks = [*CHECKS, negative_data_rejection] if operation.body else CHECKS
    named = {name: value for name, value in KNOWN.items() if f"{{{name}}}" in path}
    ways = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    if named:
        ways += [operation.as_strategy(generation_mode=mode, path_parameters=named) for mode in GenerationMode]

    @given(case=st.one_of(ways))
    @settings(
        max_examples=EXAMPLES * len(ways),
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=admin.headers, checks=checks)

    send()
