"""How a secret's values reach the library: in files without a name that only the worker has, or by URL."""

from __future__ import annotations

from collections.abc import Mapping

from dlm.gfal.workers import Speech

_FILES = {"token": "BEARER_TOKEN_FILE", "certificate": "X509_USER_CERT", "key": "X509_USER_KEY", "ca": "X509_CERT_FILE"}


def speech_to_root(secret: Mapping[str, str]) -> Speech:
    """For XRootD, whose client takes who it is from the process: one worker, one identity."""
    return Speech({variable: secret[key] for key, variable in _FILES.items() if key in secret})
