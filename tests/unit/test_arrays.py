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
    assert arrays.integers([1, None, 2]) == "{1,NULL,2}"


def test_numbers_and_truths_are_what_postgresql_reads():
    assert arrays.numbers([0.5, 1e-07, 3.0]) == "{0.5,1e-07,3.0}"
    assert arrays.booleans([True, False]) == "{True,False}"
