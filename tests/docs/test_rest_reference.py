"""docs/reference/rest.md is what the app itself says."""

from __future__ import annotations

import pytest

from dlm.web.reference import reference


def test_the_reference_of_the_rest_api_is_fresh(pytestconfig: pytest.Config) -> None:
    path = pytestconfig.rootpath / "docs/reference/rest.md"
    assert path.read_text() == reference(), "python -m dlm.web.reference > docs/reference/rest.md"
