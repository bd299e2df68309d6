"""XRootD servers on loopback: root://, and https:// with tokens and copies between servers."""

from __future__ import annotations

import base64
import contextlib
import glob
import hmac
import json
import os
import pwd
import secrets
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from joserfc import jwt
from joserfc.jwk import ECKey

from dlm.gfal import extension
from protocols.filesystems import is_root
from protocols.servers import PREFILLED, READY_S, Place, certificate, fill, free_port, program, running

USER = "nobody"  # XRootD refuses to be root
INSTALL = "xrootd-server xrootd-client xrootd-plugins xrootd-scitokens-plugins"
ISSUER = "https://issuer.invalid"
needs_gfal = pytest.mark.skipif(not extension.is_there(), reason=f"gfal2 is not installed: {extension.HINT}")


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A new directory that other users reach: pytest keeps closing those that it makes."""
    with tempfile.TemporaryDirectory(prefix="dlm-xrootd-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def xrootd(
    base: Path, *more: str, prefilled: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Place]:
    """An XRootD server of a new directory, for everybody; `more` are lines for its configuration."""
    server = program("xrootd", INSTALL)
    directory, port = base / "data", free_port()
    (base / "admin").mkdir(parents=True)
    directory.mkdir()
    if prefilled:
        fill(directory / PREFILLED / "many")
    config = base / "xrootd.cfg"
    lines = (
        f"xrd.port {port}", "all.export /", f"oss.localroot {directory}", f"all.adminpath {base}/admin",
        f"all.pidpath {base}/admin", "xrootd.chksum max 2 adler32 md5", "xrd.network nodnr",
        "ofs.tpc pgm /usr/bin/xrdcp --server",
        *more,
    )  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    command = [server, "-c", str(config), "-n", "test"]
    if is_root:
        given_to_user(base)
        command += ["-R", USER]
    with running(command, port, base / "server.log", environment):
        yield Place("root", f"root://127.0.0.1:{port}/", {}, directory, {})


@contextlib.contextmanager
def xrootd_reachable(_: Path) -> Iterator[Place]:
    """An XRootD server in a directory that it can reach, whatever directory is offered."""
    if not extension.is_there():
        pytest.skip(f"gfal2 is not installed: {extension.HINT}")
    with open_directory() as base, xrootd(base / "server") as place:
        yield place


@contextlib.contextmanager
def xrootd_token(base: Path) -> Iterator[Place]:
    """An XRootD server over TLS that lets in who has a token of its issuer (ztn, SciTokens)."""
    if not any(glob.glob(f"/usr/{place}/libXrdAccSciTokens*.so") for place in ("lib/*", "lib64")):
        pytest.skip(f"XRootD's SciTokens are not installed: apt-get install {INSTALL}")
    with certificate(base / "tls") as (crt, key, ca):
        token = _issued(base / "cache" / "scitokens")
        (base / "issuers").write_text(f"[Global]\naudience = dlm\n[Issuer test]\nissuer = {ISSUER}\nbase_path = /\n")
        key.chmod(0o400)
        if is_root:
            given_to_user(base)
        lines = (
            f"xrd.tls {crt} {key}", "xrd.tlsca noverify", "xrootd.tls all", "xrootd.seclib libXrdSec.so",
            "sec.protocol ztn", "ofs.authorize 1", f"ofs.authlib libXrdAccSciTokens.so config={base}/issuers",
        )  # fmt: skip
        with xrootd(base / "server", *lines, environment={"XDG_CACHE_HOME": f"{base}/cache"}) as place:
            yield replace(place, secret={"token": token, "ca": ca})


def _issued(cache: Path) -> str:
    """A token for everything. Its issuer's keys stand in the library's cache: it asks nobody for them."""
    key, now = ECKey.generate_key("P-256", parameters={"kid": "1", "alg": "ES256", "use": "sig"}), int(time.time())
    known = {"jwks": {"keys": [key.as_dict(private=False)]}, "next_update": now + 80_000, "expires": now + 90_000}
    cache.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(cache / "scitokens_cpp.sqllite")) as database, database:
        database.execute("CREATE TABLE keycache (issuer text UNIQUE PRIMARY KEY NOT NULL, keys text NOT NULL)")
        database.execute("INSERT INTO keycache VALUES (?, ?)", (ISSUER, json.dumps(known)))
    claims = {
        "iss": ISSUER, "sub": "dlm", "aud": "dlm", "ver": "scitoken:2.0", "scope": "read:/ write:/",
        "iat": now, "nbf": now - 10, "exp": now + 36_000,
    }  # fmt: skip
    return jwt.encode({"alg": "ES256", "kid": "1", "typ": "JWT"}, claims, key)


@contextlib.contextmanager
def xrootd_certificate(base: Path) -> Iterator[Place]:
    """An XRootD server that lets in who has a certificate of its authority (GSI)."""
    authorities = base / "authorities"
    authorities.mkdir()
    authority, signer = certified("authority", None)
    (authorities / "authority.pem").write_text(authority)
    subprocess.run([program("openssl", "openssl"), "rehash", str(authorities)], check=True, capture_output=True)
    host, host_key = certified("localhost", (authority, signer))
    user, user_key = certified("a person", (authority, signer))
    (base / "host.crt").write_text(host)
    (base / "host.key").write_text(host_key)
    (base / "host.key").chmod(0o400)
    if is_root:
        given_to_user(base)
    files = f"-certdir:{authorities} -cert:{base}/host.crt -key:{base}/host.key"
    lines = ("xrootd.seclib libXrdSec.so", f"sec.protocol gsi {files} -crl:0 -gmapopt:10 -dlgpxy:0")
    with xrootd(base / "server", *lines) as place:
        prefix = place.prefix.replace("127.0.0.1", "localhost")  # the name in its certificate
        yield replace(place, prefix=prefix, secret={"certificate": user, "key": user_key, "ca": authority})


def certified(name: str, by: tuple[str, str] | None) -> tuple[str, str]:
    """A new certificate and its key, signed by another's or by itself."""
    key, now = rsa.generate_private_key(public_exponent=65537, key_size=2048), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = subject if by is None else x509.load_pem_x509_certificate(by[0].encode()).subject
    signer = key if by is None else serialization.load_pem_private_key(by[1].encode(), None)
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(by is None, None), critical=True)
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


@contextlib.contextmanager
def xrootd_https(base: Path, *, prefilled: bool = False) -> Iterator[tuple[Place, Place]]:
    """Two XRootD servers that speak https://, let in who has a token of theirs, and copy between themselves."""
    with certificate(base / "tls") as (crt, key, ca), contextlib.ExitStack() as stack:
        authorities = base / "authorities"
        authorities.mkdir()
        shutil.copy(crt, authorities / "host.pem")
        subprocess.run(["openssl", "rehash", str(authorities)], check=True, capture_output=True)
        places = []
        for name in ("w1", "w2"):
            own = base / name
            own.mkdir()
            for file in (crt, key):
                shutil.copy(file, own / file.name)
            token, port = _let_in_by_token(own), free_port()
            place = stack.enter_context(xrootd(
                own / "server", f"xrd.tls {own}/host.crt {own}/host.key", f"xrd.tlsca certdir {authorities}",
                "all.sitename dlm", "ofs.authorize 1", "ofs.authlib libXrdMacaroons.so", f"acc.authdb {own}/nobody",
                f"macaroons.secretkey {own}/macaroons", f"xrd.protocol XrdHttp:{port} libXrdHttp.so",
                "http.header2cgi Authorization authz", "http.exthandler xrdtpc libXrdHttpTPC.so", "http.desthttps yes",
                prefilled=prefilled and not places,
            ))  # fmt: skip
            wait_for(port)
            prefix, secret = f"davs://127.0.0.1:{port}", {"token": token, "ca": ca}
            options = {"trusted_hosts": "127.0.0.1"}
            places.append(replace(place, scheme="davs", prefix=prefix, secret=secret, options=options))
        yield places[0], places[1]


def _let_in_by_token(own: Path) -> str:
    """A macaroon that allows everything for some hours; the files that its server needs are made and given to it."""
    secret = secrets.token_bytes(48)
    (own / "macaroons").write_bytes(base64.encodebytes(secret))
    (own / "nobody").write_text("u nobody-else /nowhere r\n")  # without a token nobody may do anything
    for file in own.iterdir():
        file.chmod(0o400)
    if is_root:
        given_to_user(own)
    ends_at = datetime.now(UTC) + timedelta(hours=10)
    allowed = "activity:READ_METADATA,DOWNLOAD,UPLOAD,MANAGE,UPDATE_METADATA,DELETE,LIST"
    return macaroon(secret, ["name:dlm", allowed, "path:/", f"before:{ends_at:%Y-%m-%dT%H:%M:%SZ}"])


def macaroon(secret: bytes, caveats: list[str]) -> str:
    """A macaroon in the format of libmacaroons: each caveat is signed with the signature before it."""
    signature = hmac.digest(b"macaroons-key-generator".ljust(32, b"\0"), secret, "sha256")
    packets = [b"location dlm\n"]
    for name, text in [("identifier", "1"), *(("cid", caveat) for caveat in caveats)]:
        signature = hmac.digest(signature, text.encode(), "sha256")
        packets.append(f"{name} {text}\n".encode())
    packets.append(b"signature " + signature + b"\n")
    whole = b"".join(b"%04x" % (len(packet) + 4) + packet for packet in packets)
    return base64.urlsafe_b64encode(whole).rstrip(b"=").decode()


def wait_for(port: int) -> None:
    """Return when the port takes connections: a server of two opens one after the other."""
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"nothing listens on port {port}")


def given_to_user(base: Path) -> None:
    """Make all below the directory the server's."""
    user = pwd.getpwnam(USER)
    for directory, _, names in os.walk(base):
        for path in [directory, *(os.path.join(directory, name) for name in names)]:
            os.chown(path, user.pw_uid, user.pw_gid)
