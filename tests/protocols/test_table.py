"""Which scheme is spoken by what, and what is said when that is not installed."""

from __future__ import annotations

import itertools
import sys

import pytest

from dlm.errors import Unsupported
from dlm.protocols import open_protocol, schemes
from dlm.protocols.declared import DECLARED
from dlm.protocols.places import LOCAL, remote_root
from dlm.transfertools import select
from dlm.types import ProtocolRef


@pytest.mark.parametrize(
    ("scheme", "package", "ours"),
    [("s3", "botocore", ("s3", "s3_client")), ("sftp", "asyncssh", ("sftp", "ssh"))],
)
def test_without_its_package_a_protocol_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, scheme: str, package: str, ours: tuple[str, ...]
) -> None:
    for name in ours:
        monkeypatch.delitem(sys.modules, f"dlm.protocols.{name}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unsupported, match=package) as caught:
        open_protocol(ProtocolRef(1, "far", "id", scheme, f"{scheme}://host/path"))
    assert caught.value.hint == f"pip install 'dlm[{scheme}]'"


def test_without_gfal2_root_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlm.gfal.extension.EXTENSION_SUFFIXES", [])
    with pytest.raises(Unsupported, match="gfal2") as caught:
        open_protocol(ProtocolRef(1, "far", "id", "root", "root://host//path"))
    assert str(caught.value.hint).startswith("apt-get install python3-gfal2")


def test_the_tables_of_schemes_know_the_same_ones() -> None:
    assert set(schemes()) == set(DECLARED)
    for scheme in set(schemes()) - set(LOCAL):
        root = remote_root(ProtocolRef(1, "far", "id", scheme, f"{scheme}://host/path"))
        assert root is not None and root.port > 0, f"{scheme} has a usual port"
    for pair in itertools.product(schemes(), repeat=2):
        assert select(*pair, open_protocol=open_protocol)
