"""What a way to speak to a storage may be told: nothing secret, and nothing that its scheme does not know."""

from __future__ import annotations

import pytest

from dlm.core.credentials import require_fit
from dlm.core.protocols import MAX_TIMEOUT_S, NewProtocol, check_protocols, check_spoken
from dlm.daemons.reaper import REST_S
from dlm.errors import InvalidInput
from dlm.protocols import schemes
from dlm.protocols.declared import DECLARED, declared


def test_every_scheme_with_an_adapter_declares_what_it_takes() -> None:
    assert set(schemes()) <= set(DECLARED)


@pytest.mark.parametrize(
    "prefix",
    [
        "https://AK:hunter2@host/bucket",
        "https://hunter2@host/bucket",
        "https://host/bucket?X-Amz-Signature=hunter2",
        "https://host/bucket#hunter2",
        "https://[hunter2/bucket",
    ],
)
def test_a_url_with_a_secret_in_it_is_refused_and_not_repeated(prefix: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_protocols([NewProtocol("s3", prefix)])
    assert caught.value.field == "protocols[0].prefix"
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("scheme", "prefix"),
    [
        ("davs", "davs://h/x/../b"),
        ("davs", "davs://h/x/%2e%2E/b"),
        ("davs", "davs://h/./b"),
        ("sftp", "sftp://h/a//b"),
        ("sftp", "sftp://h//a"),
        ("s3", "https://h/bucket/a//"),
        ("root", "root://h///a"),
        ("root", "root://h//a//b"),
        ("root", "root://h//a%3Fauthz=hunter2"),
        ("root", "root://h//a%23hunter2"),
        ("root", "root://h//%252E%252e/a"),
        ("https", "https://h/a%2Fhunter2"),
        ("https", "https://h/a%0Ahunter2"),
        ("https", "https://h/a%00b"),
        ("davs", "davs://a..b/hunter2"),
        ("davs", f"davs://{'x' * 64}.org/a"),
        ("davs", "davs://h:99999/a"),
        ("davs", "davs://h:port/a"),
        ("sftp", "sftp://h/" + "a/" * 32 + "b"),
    ],
)
def test_a_prefix_that_may_mean_another_place_than_it_says_is_refused(scheme: str, prefix: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_protocols([NewProtocol(scheme, prefix)])
    assert caught.value.field == "protocols[0].prefix"
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("scheme", "prefix"),
    [
        ("root", "root://h:1094//a/b/"),
        ("root", "root://h/a"),
        ("root", "root://h//"),
        ("davs", "davs://[::1]:8443"),
        ("davs", "davs://bücher.example.org/a%20b/100%25/c+d"),
        ("dav", "dav://127.0.0.1:8080/a/"),
        ("s3", "http://127.0.0.1:9000/bucket"),
        ("sftp", "sftp://h.example.org./" + "a/" * 31 + "b"),
        ("sftp", "sftp://h/..a/b.../.c"),
    ],
)
def test_a_prefix_that_means_one_place_is_taken(scheme: str, prefix: str) -> None:
    check_protocols([NewProtocol(scheme, prefix)])


def test_what_belongs_into_a_secret_is_no_option() -> None:
    with pytest.raises(InvalidInput, match="shown to everybody") as caught:
        check_spoken("s3", None, {"secret_key": "hunter2"})
    assert "secret add" in (caught.value.hint or "") and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "options", "hint"),
    [
        ("s3", {"regoin": "eu"}, "Did you mean 'region'?"),
        ("s3", {"addressing": "sideways"}, "one of path, virtual"),
        ("sftp", {"timeout_s": "1e9"}, "seconds, at most 300"),
        ("sftp", {"timeout_s": "soon"}, "seconds, at most 300"),
        ("unheard", {"Not A Key": "x"}, "small letters, digits and '_'"),
    ],
)
def test_an_option_that_the_scheme_does_not_take_is_refused_with_the_way_out(
    scheme: str, options: dict[str, str], hint: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_spoken(scheme, None, options)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "options", [{"region": ""}, {"region": "a\nb"}, {"region": "x" * 5000}, {f"k{n}": "v" for n in range(33)}]
)
def test_an_option_is_a_line_and_there_are_not_many(options: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        check_spoken("unheard" if len(options) > 1 else "s3", None, options)


def test_a_scheme_of_which_nothing_is_known_may_be_told_anything() -> None:
    assert declared("unheard") is None
    check_spoken("unheard", "my-secret", {"chunk_size": "5M"})
    require_fit("unheard", "my-secret", ["whatever"], "credentials")


@pytest.mark.parametrize(
    ("scheme", "keys"),
    [
        ("s3", ["access_key", "secret_key", "session_token"]),
        ("davs", ["token"]),
        ("davs", ["ca", "password", "username"]),
        ("sftp", ["passphrase", "private_key", "username"]),
    ],
)
def test_one_way_in_is_enough(scheme: str, keys: list[str]) -> None:
    require_fit(scheme, "mine", keys, "credentials")


@pytest.mark.parametrize(("scheme", "keys"), [("s3", ["access_key"]), ("davs", ["password"]), ("posix", ["token"])])
def test_a_secret_that_lets_nobody_in_is_refused(scheme: str, keys: list[str]) -> None:
    with pytest.raises(InvalidInput, match="needs"):
        require_fit(scheme, "mine", keys, "credentials")


def test_an_effect_ends_before_those_assume_it_who_look_after_a_dead_worker() -> None:
    botocore_tries, to_connect_and_to_answer = 2, 2
    assert MAX_TIMEOUT_S * max(botocore_tries, to_connect_and_to_answer) + 60 < REST_S
