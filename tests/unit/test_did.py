"""Names: one written form each, one path each, and errors that say where and what to do."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dlm import did
from dlm.errors import InvalidInput

SCOPES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


def is_name(text: str) -> bool:
    try:
        did.check_name(text)
    except InvalidInput:
        return False
    return True


@st.composite
def names(draw: st.DrawFn) -> str:
    alphabet = st.one_of(st.sampled_from("ab./ ~%+:.."), st.characters(exclude_categories=["Cs", "Cc"]))
    text = unicodedata.normalize("NFC", draw(st.text(alphabet, min_size=1, max_size=40))) * draw(st.integers(1, 25))
    assume(is_name(text))
    return text


def refusal(text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        did.check_name(text)
    return caught.value


def test_a_did_is_split_at_the_first_colon() -> None:
    assert did.parse("ska:eb-m001:20260711/vis.0007.ms") == ("ska", "eb-m001:20260711/vis.0007.ms")


def test_a_did_without_a_colon_is_refused_with_the_form_to_use() -> None:
    with pytest.raises(InvalidInput, match="'pictures' has no ':'") as caught:
        did.parse("pictures", field="dids[3]")
    assert (caught.value.field, caught.value.hint) == ("dids[3]", "write it as scope:name")


@pytest.mark.parametrize("scope", ["a", "0", "user.jane_doe-1", "A" * 64])
def test_a_scope_of_letters_digits_dots_and_dashes_is_taken(scope: str) -> None:
    did.check_scope(scope)


@pytest.mark.parametrize(
    ("scope", "position"), [(".a", 1), ("-a", 1), ("a b", 2), ("a/b", 2), ("aé", 2), ("a\n", 2), ("..", 1), ("a:", 2)]
)
def test_a_wrong_scope_is_refused_with_its_position(scope: str, position: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        did.check_scope(scope)
    assert caught.value.field == "scope" and caught.value.facts["position"] == position


@pytest.mark.parametrize("scope", ["", "a" * 65])
def test_an_empty_or_long_scope_is_refused(scope: str) -> None:
    with pytest.raises(InvalidInput):
        did.check_scope(scope)


@pytest.mark.parametrize(
    "name",
    ["a", "A b", "2019/harbour.jpg", "a:b", "...", ".hidden", "a/.b", "a..b", "~x", "100%", "a+b", "Zürich", "日本語",
     "x" * 1000, "é" * 500, "می\u200cخواهم"],
)  # fmt: skip
def test_an_ordinary_name_is_taken(name: str) -> None:
    did.check_name(name)
    did.check_names(["plain", name])


@pytest.mark.parametrize(
    ("name", "position", "says"),
    [
        ("/a", 1, "empty segment"),
        ("a/", 3, "empty segment"),
        ("a//b", 3, "empty segment"),
        ("..", 1, "'..'"),
        ("../a", 1, "'..'"),
        ("a/../b", 3, "'..'"),
        ("a/..", 3, "'..'"),
        ("a/./b", 3, "'.'"),
        (" a", 1, "white space"),
        ("a\u3000", 2, "white space"),
        ("a\x00b", 2, "control character"),
        ("a\r\nb", 2, "control character"),
        ("a\x7f", 2, "control character"),
        ("a\x85b", 2, "control character"),
        ("a\udc80", 2, "surrogate"),
        ("a\u202egpj", 2, "U+202E"),
        ("a\u2066b", 2, "U+2066"),
        ("ab\u200b", 3, "U+200B"),
        ("a\u2028b", 2, "U+2028"),
        ("xe\u0301", 2, "NFC"),
    ],
)
def test_a_wrong_name_is_refused_with_its_position(name: str, position: int, says: str) -> None:
    error = refusal(name)
    assert error.field == "name" and error.hint
    assert error.facts["position"] == position and says in error.detail
    assert error.detail.isprintable() and error.detail.encode()


def test_the_decomposed_twin_of_a_name_is_told_to_normalise() -> None:
    did.check_name(unicodedata.normalize("NFC", "Zürich"))
    assert "NFC" in (refusal(unicodedata.normalize("NFD", "Zürich")).hint or "")


@pytest.mark.parametrize("name", ["", "x" * 1001, "é" * 501, "x" * 10_000_000])
def test_an_empty_or_long_name_is_refused_without_repeating_it(name: str) -> None:
    assert len(refusal(name).detail) < 200


def test_the_quoted_part_of_a_long_name_shows_the_wrong_character() -> None:
    detail = refusal("x" * 500 + "\x1b[31m" + "y" * 400).detail
    assert "\\x1b" in detail and "character 501" in detail and len(detail) < 200


def test_a_list_of_names_is_refused_for_the_first_wrong_one() -> None:
    with pytest.raises(InvalidInput) as caught:
        did.check_names(["a", "b", "../c", ".."], field="files")
    assert caught.value.field == "files[2]"


def test_ten_thousand_plain_names_are_taken() -> None:
    names = [f"eb-m001-20260711/scan{i:04}/visibility.{i:06}.ms" for i in range(10_000)]
    did.check_names(names)


@pytest.mark.parametrize("path", ["a", "a b/c", "a/e\u0301.jpg", "x/" * 1749 + "ab", ".a/b..", "é"])
def test_a_path_relative_to_the_prefix_is_taken(path: str) -> None:
    did.check_path(path)
    did.check_paths(["plain", path])


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\x00b", "a\nb", "\udc80", "x/" * 1750 + "b"]
)
def test_a_path_that_could_leave_the_prefix_or_be_misread_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        did.check_paths(["plain", path])
    assert caught.value.field == "paths[1]" and caught.value.detail.isprintable()


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("vis.0007.ms", "vis.0007.ms"),
        ("2019/harbour.jpg", "2019%2Fharbour.jpg"),
        (".hidden", "%2Ehidden"),
        ("a~b %", "a%7Eb%20%25"),
        ("a+b", "a%2Bb"),
        ("é", "%C3%A9"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 199 + "+/xx"),
        ("x" * 198 + "é" + "y", "x" * 198 + "+/%C3%A9y"),
        ("x" * 197 + "éy", "x" * 197 + "+/%C3%A9y"),
        ("x" * 196 + "éy", "x" * 196 + "%C3+/%A9y"),
        ("x" * 199 + "...", "x" * 199 + "+/%2E.."),
        ("x" * 199 + "..", "x" * 199 + "+/%2E."),
    ],
)
def test_the_derived_path_encodes_the_name_below_two_hash_levels(name: str, encoded: str) -> None:
    path = did.derived_path("demo", name)
    scope, first, second, rest = path.split("/", 3)
    assert (scope, rest) == ("demo", encoded) and len(first) == len(second) == 2
    assert did.from_derived_path(path) == ("demo", name)


def test_a_derived_path_never_changes() -> None:
    assert did.derived_path("ska", "vis.0007.ms") == "ska/84/f6/vis.0007.ms"


@given(SCOPES, names())
@example("a", "." * 1000)
@example("a", "/".join(["..."] * 250))
@example("a", "é" * 500)
@example("Z" * 64, "\U0001f600" * 250)
def test_a_derived_path_leads_back_to_its_did(scope: str, name: str) -> None:
    path = did.derived_path(scope, name)
    did.check_path(path)
    components = path.split("/")
    assert all(0 < len(part) <= 200 and not part.startswith(".") for part in components) and path.isascii()
    assert all(part.endswith("+") for part in components[3:-1]) and not path.endswith("+")
    assert did.from_derived_path(path) == (scope, name)
    assert did.derived_paths(scope, ["plain", name])[1] == path
    assert did.parse(f"{scope}:{name}") == (scope, name)


@given(SCOPES, names(), st.integers(0, 400), st.sampled_from(["", "+", "/", ".", "%", "%41", "a", "../", "%2E"]))
def test_every_other_path_is_refused(scope: str, name: str, at: int, inserted: str) -> None:
    path = did.derived_path(scope, name)
    changed = path[:at] + inserted + path[at + 1 :]
    try:
        assert did.derived_path(*did.from_derived_path(changed)) == changed
    except InvalidInput:
        assert changed != path


@pytest.mark.parametrize(
    "path",
    ["", "a", "a/b/c/d", "../17/16/vis.0007.ms", "ska/84/f6/vis%2E0007.ms", "ska/84/f6/vis.0007.ms/", "ska/84/f6/",
     "ska/84/f6/%ff", "ska/84/f6/vis+/.0007.ms", "SKA/17/16/vis.0007.ms", "ska/84/f6/%", "\udc80/17/16/x"],
)  # fmt: skip
def test_a_path_that_is_not_canonical_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        did.from_derived_path(path)


@pytest.mark.parametrize("bad", ["..", "\udc80", ""])
def test_no_path_is_derived_from_an_invalid_name(bad: str) -> None:
    with pytest.raises(InvalidInput):
        did.derived_path("demo", bad)
