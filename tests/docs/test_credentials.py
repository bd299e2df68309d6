"""The page about credentials names every key and option that a scheme may be told."""

from __future__ import annotations

import pytest

from dlm.protocols.declared import DECLARED
from pages import CHECKOUT


@pytest.mark.parametrize("scheme", sorted(set(DECLARED) - {"posix", "file"}))
def test_the_keys_and_options_of_a_scheme_are_told(scheme: str) -> None:
    page = (CHECKOUT / "docs/howto/give-a-storage-its-credentials.md").read_text(encoding="utf-8")
    rows = [line.strip() for line in page.splitlines() if line.strip().startswith("|")]
    told = " ".join(row for row in rows if f"`{scheme}`" in row.split("|")[1] or row.startswith("| any "))
    assert {*DECLARED[scheme].keys(), *DECLARED[scheme].option_names()} <= set(told.split("`"))
