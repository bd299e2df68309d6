"""Array literals, against PostgreSQL's own reading of them in tests/db/test_replicas.py; here their text."""

import pytest

from dlm.db import arrays


@pytest.mark.parametrize(
    ("values", "literal"),
    [
        ([], "{}"),
        (["a", "b"], '{"a","b"}'),
        (["", "NULL", "a,b", "{}"], '{"","NULL","a,b","{}"}'),
        (['say "hi"', "back\\slash"], '{"say \\"hi\\"","back\\\\slash"}'),
        (["a", None], '{"a",NULL}'),
        (['"', '","'], '{"\\"","\\",\\""}'),
    ],
)
def test_a_text_array_keeps_every_value_apart(values: list[str | None], literal: str) -> None:
    assert arrays.texts(values) == literal


def test_an_integer_array_is_its_numbers() -> None:
    assert arrays.integers([1, -2, 2**62]) == f"{{1,-2,{2**62}}}"
    assert arrays.integers([]) == "{}"
