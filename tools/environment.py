"""The environment a checkout's tools run in: .venv with dlm installed for editing. Standard library only.

Runs on whatever Python starts it, so that an old one can be told so; the rest of the project needs 3.11.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "made-for.json"
LOWEST = (3, 11)
ELSEWHERE = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")


def ensure(extras, say=print):
    """The Python of .venv, which is made, or brought up to date with setup.cfg, as far as necessary.

    `say` hears one line before work that takes long. Ends the program with one line when it cannot be done.
    """
    if sys.version_info < LOWEST:
        sys.exit(f"Python {LOWEST[0]}.{LOWEST[1]} or newer is needed; {sys.executable} is {sys.version.split()[0]}")
    if is_fresh(extras):
        return PYTHON
    if not os.access(CHECKOUT, os.W_OK):
        sys.exit(f"cannot write to {CHECKOUT}: clone the repository to a place of your own")
    with locked():
        if not is_fresh(extras):
            make(extras, say)
    return PYTHON


def is_fresh(extras):
    """True when .venv was made for these files, this place, and at least these extras."""
    try:
        made = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return made["key"] == key() and set(extras) <= set(made["extras"]) and PYTHON.exists()


def make(extras, say):
    """Make .venv unless a working one is there, and install dlm with the extras into it."""
    if not works():
        if importlib.util.find_spec("ensurepip") is None:
            sys.exit("this Python has no ensurepip: apt-get install python3-venv (or your system's package for venv)")
        say("making .venv …")
        run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    say("installing packages into .venv …")
    target = f"{CHECKOUT}[{','.join(extras)}]"
    run([str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", target])
    STAMP.write_text(json.dumps({"key": key(), "extras": sorted(extras)}))


def works():
    """True when .venv has a Python that is new enough, a pip, and was made in this place."""
    question = f"import sys, pip; sys.exit(sys.version_info < {LOWEST})"
    try:
        answer = subprocess.run([str(PYTHON), "-c", question], capture_output=True, check=False)
    except OSError:
        return False
    # Scripts carry the absolute path of their Python: a checkout that was moved needs new ones.
    activate = VENV / "bin" / "activate"
    return answer.returncode == 0 and activate.exists() and str(VENV) in activate.read_text()


def key():
    """A digest of all that decides what .venv must contain."""
    digest = hashlib.sha256(str(CHECKOUT).encode())
    for name in ("setup.cfg", "pyproject.toml"):
        digest.update((CHECKOUT / name).read_bytes())
    return digest.hexdigest()


def run(command):
    """Run the command; end the program with its output when it fails.

    What the caller's shell says of other places for packages must not lead them out of .venv.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == 0:
        return
    if "No matching distribution" in done.stdout or "Temporary failure in name resolution" in done.stdout:
        sys.exit(f"{done.stdout}\npip found no packages: is the network, or the package index it is set up with, in reach?")
    sys.exit(f"{done.stdout}\n{' '.join(command)} failed")


@contextlib.contextmanager
def locked():
    """Hold the checkout's lock: two tools that start at once make one environment."""
    descriptor = os.open(CHECKOUT, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
