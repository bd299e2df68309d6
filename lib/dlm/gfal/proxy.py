"""Short-lived proxies of certificates (RFC 3820): XRootD's client wants one in place of a certificate and its key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from dlm.errors import StorageError
from dlm.types import ErrorClass

LIFETIME = timedelta(hours=12)
_CLOCKS_DIFFER = timedelta(minutes=5)
_PROXY_INFORMATION = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_MAY_ALL = bytes.fromhex("300c300a06082b06010505071501")  # the policy "inherit all", in DER


def made(certificate: str, key: str) -> str:
    """A new proxy in PEM: its certificate, its key, and the certificates that were given, whose key signed it.

    StorageError PERMISSION when these cannot be read; nothing of them is said.
    """
    try:
        owner, signer = x509.load_pem_x509_certificates(certificate.encode()), _loaded(key)
        own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        proxy = _signed(owner[0], signer, own)
    except (ValueError, TypeError) as error:
        detail = f"the secret's certificate or key cannot be used ({type(error).__name__})"
        raise StorageError(ErrorClass.PERMISSION, detail, hint="PEM texts; the key without a passphrase") from None
    private = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in owner)
    return (proxy.public_bytes(serialization.Encoding.PEM) + private + chain).decode()


def of_nobody() -> str:
    """A certificate, and its key, that says nothing and that no authority vouches for, to show in place of another.

    A server that wants to know whose it is refuses it; most do not ask for one before who comes logs in.
    """
    name, own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")]), ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    unsigned = (
        x509.CertificateBuilder(name, name, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + LIFETIME)
    )
    private = own.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return (unsigned.sign(own, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + private).decode()


def _loaded(key: str) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    loaded = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise TypeError
    return loaded


def _signed(
    owner: x509.Certificate, signer: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, own: rsa.RSAPrivateKey
) -> x509.Certificate:
    serial, now = x509.random_serial_number() >> 96, datetime.now(UTC)
    subject = x509.Name([*owner.subject.rdns[:], x509.RelativeDistinguishedName([_named(serial)])])
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=True, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(owner.subject)
        .public_key(own.public_key())
        .serial_number(serial)
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(min(now + LIFETIME, owner.not_valid_after_utc))
        .add_extension(usage, critical=True)
        .add_extension(x509.UnrecognizedExtension(_PROXY_INFORMATION, _MAY_ALL), critical=True)
        .sign(signer, hashes.SHA256())
    )


def _named(serial: int) -> x509.NameAttribute:
    return x509.NameAttribute(NameOID.COMMON_NAME, str(serial))
