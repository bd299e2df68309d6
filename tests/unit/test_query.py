"""The filter language: what each text means, and that every mistake is found where it stands."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlm.core.query import MAX_CHARACTERS, MAX_CONDITIONS, parse
from dlm.errors import InvalidInput
from dlm.types import Condition, Query

WORDS = st.text("abz09._-:/+%{}[]#@é", min_size=1, max_size=6).filter(lambda word: word[0] in "abzé")
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="'"), max_size=8)
NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=3) | st.integers().map(Decimal)
COMPARES = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
SPACES = st.sampled_from(["", " ", "\t ", "\n"])


def only(text: str) -> list[Condition]:
    """The conditions of a text with one alternative."""
    (conditions,) = parse(text).alternatives
    return list(conditions)


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("a=b", [Condition("a", "=", "b")]),
        (" a = b , c>1 ", [Condition("a", "=", "b"), Condition("c", ">", Decimal(1))]),
        ("a", [Condition("a")]),
        ("a=*", [Condition("a")]),
        ("1<x<=2.5", [Condition("x", ">", Decimal(1)), Condition("x", "<=", Decimal("2.5"))]),
        ("9>=x>1", [Condition("x", "<=", Decimal(9)), Condition("x", ">", Decimal(1))]),
        ("5<x", [Condition("x", ">", Decimal(5))]),
        ("x=-1e3", [Condition("x", "=", Decimal(-1000))]),
        ("x='5'", [Condition("x", "=", "5")]),
        ("x=True, y='True'", [Condition("x", "=", "true"), Condition("y", "=", "True")]),
        ("x=2026-01-31", [Condition("x", "=", "2026-01-31")]),
        ("x=raw*", [Condition("x", "=", ("raw", ""))]),
        ("x!=**a**b*", [Condition("x", "!=", ("", "a", "b", ""))]),
        ("x='a*'", [Condition("x", "=", "a*")]),
        ("""x="it's "*'"'""", [Condition("x", "=", ("it's ", '"'))]),
        ("x=''", [Condition("x", "=", "")]),
        ("name=a*", [Condition("name", "=", ("a", ""), True)]),
        ("'name'=a", [Condition("name", "=", "a")]),
        ("kind!=file", [Condition("kind", "!=", "file", True)]),
        ("length>3", [Condition("files", ">", Decimal(3), True)]),
        ("'length'>3", [Condition("length", ">", Decimal(3))]),
        ("size_bytes<=1e9", [Condition("size_bytes", "<=", Decimal(10**9), True)]),
        ("created_at", [Condition("created_at", is_built_in=True)]),
        ("a=b,a=b, a = 'b'", [Condition("a", "=", "b")]),
    ],
)
def test_what_a_text_means(text: str, conditions: list[Condition]) -> None:
    assert only(text) == conditions


@pytest.mark.parametrize(
    ("text", "op"), [("created_after=", ">="), ("created_before=", "<="), ("created_at<", "<"), ("created_at!=", "!=")]
)
@pytest.mark.parametrize(
    "time", ["2026-01-31", "2026-01-31T00:00:00Z", "2026-01-31T01:00:00+01:00", "'2026-01-31 00:00'"]
)
def test_times_are_in_iso_form_and_utc_without_a_zone(text: str, op: str, time: str) -> None:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    assert only(text + time) == [Condition("created_at", op, moment, True)]


def test_semicolons_part_alternatives_and_repeated_ones_count_once() -> None:
    a, b, c = (Condition(key) for key in "abc")
    assert parse("a,b;c;b , a ; a,b").alternatives == ((a, b), (c,), (b, a))


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("", 1, "a key, found the end"),
        ("a,", 3, "a key, found the end"),
        ("a;;b", 3, "a key, found ';'"),
        ("a=", 3, "a value, found the end"),
        ("a==b", 3, "a value, found '='"),
        ("a=b c", 5, "',' or ';' or the end, found 'c'"),
        ("a=b&c=d", 4, "a key, a value or an operator, found '&'"),
        ("a=(b)", 3, "a key, a value or an operator, found '('"),
        ("a=b, c='d", 10, "a closing ' for the one in column 8, found the end"),
        ("1<x<2<3", 6, "',' or ';' or the end, found '<'"),
        ("1=x<2", 2, "one of < <= > >=: a chain has no other, found '='"),
        ("a*=b", 1, "a key, found 'a*'"),
        ("5", 1, "a key, found '5'"),
        ("1<2", 3, "a key, found '2'"),
        ("''=1", 1, "a key, found ''''"),
        ("a<b*", 4, "a value without '*', found '*'"),
        ("kind=f*", 7, "a kind without '*', found '*'"),
        ("a!=*", 4, "a value that something can differ from, found '*'"),
        ("name<a", 5, "'=' or '!=', found '<'"),
        ("kind=item", 6, "file, dataset or container, found 'item'"),
        ("files=many", 7, "a number of at most 400 digits, found 'many'"),
        ("files='5'", 7, "a number of at most 400 digits, found ''5''"),
        ("x=1e401", 3, "a number of at most 400 digits, found '1e401'"),
        ("x=1e" + "9" * 30, 3, "a number of at most 400 digits, found '1e" + "9" * 30 + "'"),
        ("created_at>now", 12, "a time, found 'now'"),
        ("created_after>2026-01-01", 14, "'=', found '>'"),
        ("created_before", 15, "'=' and a time, found the end"),
        ("a='\0'", 4, "a character that prints, found '\ufffd'"),
        (
            ",".join("a" * (MAX_CONDITIONS + 1)),
            2 * MAX_CONDITIONS + 1,
            f"at most {MAX_CONDITIONS} conditions, found 'a'",
        ),
    ],
)
def test_a_mistake_is_told_with_its_column(text: str, column: int, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert (caught.value.detail, caught.value.field) == (f"column {column}: expected {expected}", "filter")
    assert caught.value.facts["caret"].splitlines()[-1].endswith("^") and caught.value.hint


def test_a_text_that_is_too_long_is_not_read() -> None:
    assert len(parse("a=" + "b" * (MAX_CHARACTERS - 2)).alternatives) == 1
    with pytest.raises(InvalidInput, match="at most 4,096 characters"):
        parse("a=" + "b" * (MAX_CHARACTERS - 1))


def quoted(text: str) -> str:
    return f"'{text}'"


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Condition]:
    """A condition, and a way to write it."""
    key, op, space = draw(TEXTS.filter(bool)), draw(COMPARES), draw(SPACES)
    value: str | Decimal | tuple[str, ...]
    shown, value = draw(
        st.one_of(
            TEXTS.map(lambda text: (quoted(text), text)),
            WORDS.map(lambda word: (word, word)),
            NUMBERS.map(lambda number: (str(number), number)),
            st.tuples(TEXTS.filter(bool), TEXTS.filter(bool)).map(
                lambda two: (f"{quoted(two[0])}*{quoted(two[1])}", two)
            ),
        )
    )
    if isinstance(value, tuple) and op not in ("=", "!="):
        op = "="
    return f"{space}{quoted(key)}{space}{op}{space}{shown}{space}", Condition(key, op, value)


@given(st.lists(st.lists(written(), min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_is_written_is_what_is_read(alternatives: list[list[tuple[str, Condition]]]) -> None:
    text = ";".join(",".join(shown for shown, _ in each) for each in alternatives)
    meant = tuple(tuple(dict.fromkeys(condition for _, condition in each)) for each in alternatives)
    assert parse(text) == Query(tuple(dict.fromkeys(meant)))


@given(st.text("ab1*'\"=<>!,; \\&%\x00\ud800é", max_size=12))
def test_any_text_is_a_query_or_a_mistake_within_it(text: str) -> None:
    try:
        query = parse(text)
    except InvalidInput as error:
        assert 1 <= error.facts["column"] <= len(text) + 1
    else:
        assert all(query.alternatives)
