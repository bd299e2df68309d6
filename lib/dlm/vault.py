"""The keys with which secrets are encrypted at rest, and the two acts that need them: seal and open.

A key is 32 random bytes, written in base64, known by the first digits of its hash. The first one encrypts, all of them
decrypt. AES-256-GCM with the secret's name as associated data: a row that was moved under another name opens no more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dlm.errors import Conflict
from dlm.types import Secret

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_FILE_BYTES = 65_536
NO_KEY_HINT = "dlm-admin db init makes secrets.key_file on the host of the service; or set DLM_SECRETS_KEY"


@dataclass(frozen=True, slots=True)
class Sealed:
    """The values of one secret, encrypted; the id says under which key."""

    key_id: str
    ciphertext: bytes


class Vault:
    """Where the keys stand: a text (of the environment), else a file, which is read anew each time: a key that was put
    there counts at once in every process. Whoever writes keys, or seals with them, holds core.secrets.KEYS_LOCK.

    All methods raise Conflict, without a word of the keys, for what is no key and for a file that others may read.
    """

    def __init__(self, key_file: str = "", text: str = "") -> None:
        self.key_file = key_file
        self._text = text

    @property
    def is_writable(self) -> bool:
        """True when the keys stand in a file, to which another may be added."""
        return bool(self.key_file) and not self._text

    @property
    def where(self) -> str:
        """Where the keys stand, for people."""
        return "DLM_SECRETS_KEY" if self._text else self.key_file or "the settings"

    def key_ids(self) -> list[str]:
        """The ids of the keys, that of the one which encrypts first; none when there is no key."""
        return list(self.ring().keys)

    def ring(self) -> Ring:
        """The keys as they are now."""
        texts = self._text if self._text else self._of_file()
        keys = {}
        for number, line in enumerate(re.split(r"[\n,]", texts), 1):
            if text := line.partition("#")[0].strip():
                key = _key(text, f"{self.where}, line {number}")
                keys[key_id(key)] = key
        return Ring(keys, self.where)

    def add_key(self) -> str:
        """The id of a new key, which stands first in the file from now on; the file is made if it is not there."""
        ring = self.ring()
        key = AESGCM.generate_key(KEY_BYTES * 8)
        self._write([key, *ring.keys.values()])
        return key_id(key)

    def drop_keys(self) -> list[str]:
        """The ids of all keys but the first, which no longer stand in the file."""
        keys = self.ring().keys
        self._write(list(keys.values())[:1])
        return list(keys)[1:]

    def _of_file(self) -> str:
        if not self.key_file:
            return ""
        try:
            with open(self.key_file, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o007:
                    hint = f"chmod 600 {self.key_file}"
                    raise Conflict(f"{self.key_file} is open to others", field="secrets_key_file", hint=hint)
                return file.read(MAX_FILE_BYTES).decode("ascii", errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            detail = f"{self.key_file} cannot be read: {error.strerror}"
            raise Conflict(detail, field="secrets_key_file") from error

    def _write(self, keys: list[bytes]) -> None:
        """Replace the file, whole or not at all, and for good: what is sealed with a key from now on needs the file.

        Whose it is, and who may read it, stays: else its owner alone. What a killed process left of its own is removed.
        """
        path = Path(self.key_file)
        draft = path.with_name(f"{path.name}.{token_hex(8)}.new")
        try:
            made = [above for above in path.parents if not above.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            for older in path.parent.iterdir():
                if re.fullmatch(rf"{re.escape(path.name)}\.[0-9a-f]+\.new", older.name):
                    older.unlink(missing_ok=True)
            try:
                _write_draft(draft, path, keys)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
            for directory in (path.parent, *(above.parent for above in made)):
                _sync_directory(directory)
        except OSError as error:
            detail = f"{self.key_file} cannot be written: {error.strerror}"
            hint = "has the disk room, and may this user write there?"
            raise Conflict(detail, field="secrets_key_file", hint=hint) from error


@dataclass(frozen=True, slots=True, repr=False)
class Ring:
    """The keys by id, that which encrypts first. Take it for one piece of work, and let it go."""

    keys: Mapping[str, bytes]
    where: str

    def seal(self, name: str, values: Mapping[str, str]) -> Sealed:
        """The values, encrypted under the first key. Conflict when there is none."""
        if not self.keys:
            raise Conflict("there is no key to encrypt secrets with", hint=NO_KEY_HINT)
        identity, key = next(iter(self.keys.items()))
        nonce = os.urandom(NONCE_BYTES)
        plain = json.dumps(dict(values), sort_keys=True).encode()
        return Sealed(identity, nonce + AESGCM(key).encrypt(nonce, plain, _associated(name)))

    def open(self, name: str, sealed: Sealed) -> Secret:
        """The values. Conflict, with the reason, when the key is not here or the row is not what was sealed."""
        key = self.keys.get(sealed.key_id)
        if key is None:
            detail = f"secret {name} is encrypted under key {sealed.key_id}, which is not in {self.where}"
            raise Conflict(detail, field="credentials", hint="put that key there, or set the secret anew")
        nonce, rest = sealed.ciphertext[:NONCE_BYTES], sealed.ciphertext[NONCE_BYTES:]
        try:
            return Secret(json.loads(AESGCM(key).decrypt(nonce, rest, _associated(name))))
        except (InvalidTag, ValueError):
            detail = f"secret {name} cannot be decrypted: its row was changed, or belongs to another"
            raise Conflict(detail, field="credentials", hint=f"set it anew: dlm-admin secret set {name}") from None


def _write_draft(draft: Path, path: Path, keys: list[bytes]) -> None:
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        if path.exists():
            before = path.stat()
            os.fchown(descriptor, before.st_uid, before.st_gid)
            os.fchmod(descriptor, before.st_mode & 0o770)
        file.write("# Keys of dlm's secrets; the first encrypts. Without them no secret can be read again.\n")
        file.writelines(f"{base64.b64encode(key).decode()}\n" for key in keys)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_id(key: bytes) -> str:
    """What a key is called: it tells keys apart, and nothing about them."""
    return hashlib.sha256(b"dlm key id" + key).hexdigest()[:8]


def _associated(name: str) -> bytes:
    return b"dlm secret " + name.encode()


def _key(text: str, place: str) -> bytes:
    """The key that the text spells; Conflict, without the text, for what spells none."""
    try:
        key = base64.b64decode(text.translate({0x2D: "+", 0x5F: "/"}) + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        hint = f"{KEY_BYTES} random bytes in base64, e.g. of: openssl rand -base64 {KEY_BYTES}"
        raise Conflict(f"{place} is no key", field="secrets_key", hint=hint) from None
    return key
