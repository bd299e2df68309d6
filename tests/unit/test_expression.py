"""Storage expressions: Rucio's meaning, our additions, and errors that point at the column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlm.core import expression
from dlm.core.expression import Snapshot, canonical, check, evaluate, parse
from dlm.errors import InvalidInput
from dlm.types import Storage


def storage(id: int, name: str, site: str, country: str | None, **more: object) -> Storage:
    fields: dict[str, object] = {"type": "disk", "phase": "gas", "free_bytes": 10**12, "can_write": True}
    fields |= {key: more.pop(key) for key in tuple(more) if key in fields}
    attributes = {key: str(value) for key, value in more.items()}
    return Storage(
        id=id, name=name, site=site, country=country, can_read=True, can_delete=True, is_available=True,
        attributes=attributes, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


WORLD = (
    storage(1, "perth-disk", "perth", "AU", tier=1, fast="True", rack="r1.a", lat="-31.9"),
    storage(2, "perth-tape", "perth", "AU", type="tape", phase="solid", tier=2, free_bytes=None),
    storage(3, "bern-disk", "bern", "CH", tier=1, fast="false", city="Bern (old town)", lat="46.9", phase="liquid"),
    storage(4, "cape-disk", "cape", "ZA", tier=0, can_write=False, quality="high", phase="plasma", free_bytes=0),
    storage(5, "LYON", "lyon", None, tier="none", SCRATCH="true", note="it's", star="a*b"),
)


def ids(text: str, world: Sequence[Storage] = WORLD) -> set[int]:
    return set(evaluate(parse(text), world))


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        # Rucio's
        ("*", {1, 2, 3, 4, 5}),
        ("LYON", {5}),
        ("perth-disk", {1}),
        ("fast", {1}),
        ("SCRATCH", {5}),
        ("tier=1", {1, 3}),
        ("tier=1&country=AU", {1}),
        ("country=AU|country=CH", {1, 2, 3}),
        (r"*\country=AU", {3, 4, 5}),
        (r"country=AU|country=CH\type=tape", {1, 3}),
        (r"country=AU|(country=CH\type=tape)", {1, 2, 3}),
        ("tier=0|tier=1&country=AU", {1}),
        ("tier=0|(tier=1&country=AU)", {1, 4}),
        ("tier<2", {1, 3, 4}),
        ("tier>0", {1, 2, 3}),
        ("lat<-5", {1}),
        ("tier<high", set()),
        ("fast=TRUE", {1}),
        ("fast=False", {3}),
        ("quality=High", set()),
        ("NOWHERE", set()),
        ("contry=AU", set()),
        ("((LYON))", {5}),
        # Rucio's columns
        ("rse=LYON", {5}),
        ("rse_type=TAPE", {2}),
        ("rse_type=DISK&country_name=AU", {1}),
        ("availability_write=0", {4}),
        ("availability_write=True", {1, 2, 3, 5}),
        ("availability_read", {1, 2, 3, 4, 5}),
        # beyond Rucio
        (" tier = 1\n&\tcountry = AU ", {1}),
        ("country!=AU", {3, 4}),
        ("fast!=true", {3}),
        ("tier<=1", {1, 3, 4}),
        ("tier>=1", {1, 2, 3}),
        ("name=perth*", {1, 2}),
        ("name=*disk", {1, 3, 4}),
        ("name=*e*-*k", {1, 3, 4}),
        ("name!=*disk", {2, 5}),
        ("quality=*", {4}),
        ("quality!=*", set()),
        (r"*\quality=*", {1, 2, 3, 5}),
        ("rack=r1.a", {1}),
        ("rack=r1*a", {1}),
        ("city='Bern (old town)'", {3}),
        ('note="it\'s"', {5}),
        ("star='a*b'", {5}),
        ("star=a*b", {5}),
        ("name='perth*'", set()),
        ("'perth-disk'", {1}),
        ("phase>=liquid", {2, 3}),
        ("phase<GAS", {4}),
        ("phase=SOLID", {2}),
        ("phase<green", set()),
        ("site=perth&type=disk", {1}),
        ("free_bytes>1e11", {1, 2, 3, 5}),
        ("free_bytes<=0", {4}),
        ("free_bytes=inf", {2}),
        (r"writable\writable=0", {1, 2, 3, 5}),
        ("writable=f*", {4}),
        ("available&deletable&readable", {1, 2, 3, 4, 5}),
    ],
)
def test_an_expression_matches(text: str, matches: set[int]) -> None:
    assert ids(text) == matches
    assert ids(canonical(parse(text))) == matches


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (" tier = 1 & country = AU ", "tier=1&country=AU"),
        ("((a))", "a"),
        ("(a|b)&c", "a|b&c"),
        ("a|(b&c)", "a|(b&c)"),
        ("a|(b|c)", "a|b|c"),
        ("a&(b&(c&d))", "a&b&c&d"),
        ("a|((b&c)|d)", "a|(b&c|d)"),
        (r"a\(b\c)", r"a\(b\c)"),
        (r"(a\b)\c", r"a\b\c"),
        ("rse_type=DISK", "type=disk"),
        ("rse=X|country_name=CH", "name=X|country=CH"),
        ("availability_write=1", "writable=true"),
        ("writable='TRUE'", "writable=true"),
        ("a=True", "a=true"),
        ("a='b'", "a=b"),
        ("a=\"b c\"", "a='b c'"),
        ("a=\"it's\"", "a=\"it's\""),
        ("a=''", "a=''"),
        ("a='x*'", "a='x*'"),
        ("a=x**y", "a=x*y"),
        ("'x y'|*", "'x y'|*"),
        ("phase>=Liquid", "phase>=liquid"),
    ],
)  # fmt: skip
def test_the_canonical_form_is(text: str, form: str) -> None:
    assert canonical(parse(text)) == form
    assert parse(text) == parse(form) and hash(parse(text)) == hash(parse(form))


A_TERM = "a storage name"
AN_OPERATOR = "an operator"


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("", 1, A_TERM),
        ("   ", 4, A_TERM),
        ("()", 2, A_TERM),
        ("&a", 1, A_TERM),
        ("a&", 3, A_TERM),
        ("a&&b", 3, A_TERM),
        ("a & | b", 5, A_TERM),
        ("=1", 1, A_TERM),
        ("a b", 3, AN_OPERATOR),
        ("a and b", 3, AN_OPERATOR),
        ("a(b)", 2, AN_OPERATOR),
        ("a)", 2, AN_OPERATOR),
        ("a=1=2", 4, AN_OPERATOR),
        ("*=1", 2, AN_OPERATOR),
        ("'a'=1", 4, AN_OPERATOR),
        ("(a&b", 5, "')' for the '(' in column 1"),
        ("(a", 3, "')'"),
        ("a&(b|(c)", 9, "')' for the '(' in column 3"),
        ("a=", 3, "a value"),
        ("a==1", 3, "a value"),
        ("a=>1", 3, "a value"),
        ("tier=&country=AU", 6, "a value"),
        ("a=(b)", 3, "a value"),
        ("a='b", 5, "a closing ' for the one in column 3"),
        ("a=\"b'", 6, 'a closing " for the one in column 3'),
        ("a|perth*", 8, "a name without '*'"),
        ("city=São", 7, "a name, a value or an operator"),
        ("a!b", 2, "a name, a value or an operator"),
        ("a;b", 2, "a name, a value or an operator"),
        ("a='x\ny'", 5, "a character that prints"),
        ("a=\x00", 3, "a character that prints"),
        ("a\u202eb", 2, "a character that prints"),
        ("a=\udc80", 3, "a character that prints"),
        ("writable=maybe", 10, "true, false, 1 or 0"),
        ("availability_write=2", 20, "true, false, 1 or 0"),
        ("(" * 65 + "a" + ")" * 65, 65, "at most 64 parentheses"),
        ("(" * 4096, 65, "at most 64 parentheses"),
        ("|".join(["a"] * 513), 1025, "at most 512 terms"),
        ("a" * 4097, 4097, "at most 4,096 characters"),
    ],
)
def test_a_malformed_expression_is_refused_at_its_column(text: str, column: int, expected: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text, field="source_storages")
    error = caught.value
    assert error.field == "source_storages" and error.hint
    assert error.facts["column"] == column and error.detail.startswith(f"column {column}: expected {expected}")
    assert error.detail.isprintable()
    line, caret = error.facts["caret"].split("\n")
    assert caret.endswith("^") and len(caret) <= len(line) + 1


def test_the_caret_stands_below_the_mistake() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse("tier=1 & (country=AU or country=ZA)")
    assert caught.value.facts["caret"] == "tier=1 & (country=AU or country=ZA)\n                     ^"
    assert caught.value.hint == "write '|' for or"


def test_the_limits_are_those_that_are_refused_beyond() -> None:
    assert ids("(" * 64 + "LYON" + ")" * 64) == {5}
    assert ids("|".join(["LYON"] * 512)) == {5}
    assert ids("LYON" + " " * 4092) == {5}


@pytest.mark.parametrize("text", ["(" * 100_000, "a|" * 1_000_000, "a" * 10_000_000, "(a|" * 1300, "'" * 4095])
def test_an_abusive_expression_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert len(caught.value.detail) < 300 and len(caught.value.facts["caret"]) < 300


def test_many_wildcards_cost_no_backtracking() -> None:
    world = [storage(1, "a" * 1000, "x", None)]
    assert ids("name=" + "*a" * 100 + "b", world) == set()
    assert ids("name=" + "*a" * 1000, world) == {1}


@pytest.mark.parametrize(
    ("text", "column", "says", "suggestion"),
    [
        ("tier=1&contry=AU", 8, "'contry' is no attribute (column 8). Did you mean 'country'?", "country"),
        ("tier=1|perth-disc", 8, "'perth-disc' is no storage and no attribute (column 8)", "perth-disk"),
        ("country=Au", 9, "no storage has country=Au (column 9). Did you mean 'AU'?", "AU"),
        ("lyon", 1, "'lyon' is no storage", "LYON"),
        ("quality", 1, "no storage has quality=true", None),
        ("phase>=gaz", 8, "'gaz' is no phase", "gas"),
        ("free_bytes>10TB", 12, "'10TB' is not a number", None),
        ("tier>7", 1, "no storage has tier>7", None),
        ("xyzzy", 1, "'xyzzy' is no storage and no attribute (column 1)", None),
    ],
)
def test_a_term_that_matches_nothing_gets_a_hint(text: str, column: int, says: str, suggestion: str | None) -> None:
    (hint,) = check(parse(text), WORLD)
    assert (hint.column, hint.suggestion) == (column, suggestion)
    assert hint.text.startswith(says)


def test_terms_that_match_get_no_hint_and_hints_are_few() -> None:
    assert check(parse("tier=1|LYON|*"), WORLD) == []
    assert len(check(parse("|".join(f"nothing{i}" for i in range(200))), WORLD)) == expression.MAX_HINTS


def test_built_in_keys_and_their_aliases_cannot_be_attributes() -> None:
    for key in ("name", "phase", "site", "country", "type", "free_bytes", "rse", "availability_write"):
        with pytest.raises(InvalidInput, match="built-in"):
            expression.check_key(key)
    for key in ("", "a b", "a=b", "é", "x" * 65, "a\x00"):
        with pytest.raises(InvalidInput) as caught:
            expression.check_key(key)
        assert caught.value.detail.isprintable()
    expression.check_key("tier")


def test_a_thousand_storages_are_the_same_to_a_snapshot() -> None:
    world = [storage(i, f"s{i}", f"site{i % 50}", "AU", tier=i % 4, rack=f"r{i}") for i in range(1000)]
    wanted = parse(r"tier<=1&(country=AU|country=ZA)\s7|rack=r9*")
    cold = evaluate(wanted, world)
    assert evaluate(wanted, Snapshot(world)) == cold


# A second reading of the grammar, naive and recursive, against which the first is held.


@dataclass(frozen=True)
class Node:
    left: "Node | str"
    op: str
    right: "Node | str"


TERMS = st.one_of(
    st.just("*"),
    st.sampled_from([s.name for s in WORLD] + ["fast", "SCRATCH", "nowhere", "writable"]),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["tier", "country", "site", "type", "name", "quality", "lat", "nothing"]),
        st.sampled_from(["=", "!=", "<", ">", "<=", ">="]),
        st.sampled_from(["1", "2", "AU", "perth", "disk", "none", "*", "*r*", "p*-disk", "46.9", "-31.9"]),
    ),
)
TREES = st.recursive(TERMS, lambda inner: st.builds(Node, inner, st.sampled_from("|&\\"), inner), max_leaves=12)


def written(node: Node | str, draw: st.DataObject) -> str:
    """The tree as text: parentheses where they are needed, and here and there where they are not."""
    if isinstance(node, str):
        return f"({node})" if draw.draw(st.integers(0, 5)) == 0 else node
    left, right = written(node.left, draw), written(node.right, draw)
    if isinstance(node.right, Node):
        right = f"({right})"
    if draw.draw(st.integers(0, 3)) == 0:
        left = f"( {left} )"
    space = " " * draw.draw(st.integers(0, 1))
    return f"{left}{space}{node.op}{space}{right}"


def meant(node: Node | str) -> set[int]:
    if isinstance(node, Node):
        left, right = meant(node.left), meant(node.right)
        return {"|": left | right, "&": left & right, "\\": left - right}[node.op]
    return {s.id for s in WORLD if holds(node, s)}


def holds(term: str, s: Storage) -> bool:
    known = {"name": s.name, "site": s.site, "type": s.type, "writable": str(s.can_write), **s.attributes}
    known |= {"country": s.country} if s.country else {}
    for op in ("!=", "<=", ">=", "=", "<", ">"):
        if op in term:
            key, value = term.split(op)
            return key in known and compares(known[key], op, value)
    return term == "*" or s.name == term or known.get(term, "").lower() == "true"


def compares(have: str, op: str, want: str) -> bool:
    if op in ("=", "!="):
        return like(want, have) == (op == "=")
    try:
        a, b = float(have), float(want)
    except ValueError:
        return False
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[op]


def like(pattern: str, text: str) -> bool:
    if not pattern or not text:
        return pattern.strip("*") == text
    if pattern[0] == "*":
        return like(pattern[1:], text) or like(pattern, text[1:])
    return pattern[0] == text[0] and like(pattern[1:], text[1:])


@given(TREES, st.data())
def test_every_expression_means_what_the_naive_reading_says(tree: Node | str, data: st.DataObject) -> None:
    parsed = parse(written(tree, data))
    assert evaluate(parsed, WORLD) == meant(tree)
    again = parse(canonical(parsed))
    assert canonical(again) == canonical(parsed)
    assert evaluate(again, WORLD) == meant(tree)


@given(st.one_of(st.text(max_size=60), st.text("ab1*()|&\\=!<>'\" .-", max_size=40)))
@example("a='\"'|b")
@example("''")
def test_every_text_is_an_expression_or_an_error_with_a_column(text: str) -> None:
    try:
        parsed = parse(text)
    except InvalidInput as error:
        assert 1 <= error.facts["column"] <= len(text) + 1
        assert error.detail.isprintable() and error.facts["caret"].encode()
        return
    again = parse(canonical(parsed))
    assert canonical(again) == canonical(parsed)
    assert evaluate(again, WORLD) == evaluate(parsed, WORLD)
    check(parsed, WORLD)
