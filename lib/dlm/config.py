"""Every setting once, and the one place that reads the environment and the configuration file.

Order: default < file < environment < flag. A key that is not declared here is an error wherever it stands.
`python -m dlm.config --example` and `--reference` write etc/dlm.cfg.example and docs/reference/settings.md.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dlm.errors import InvalidInput, NotFound

FILES = ("var/dlm.cfg", "etc/dlm.cfg", "/etc/dlm/dlm.cfg")  # the first that exists, when DLM_CONFIG names none
PREFIX = "DLM_"
# Variables that are no settings: the file itself, the client's short forms, and what tests set.
OTHER_VARIABLES = ("DLM_CONFIG", "DLM_KILL_AT", "DLM_TOKEN", "DLM_URL")
OTHER_PREFIX = "DLM_TEST_"
DAY = 86400
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def setting(
    default: Any,
    unit: str,
    help: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    is_secret: bool = False,
) -> Any:
    """A field of Settings. Its section is the first word of its name; the bounds are inclusive. A secret is not shown."""
    facts = {"unit": unit, "help": help, "least": least, "most": most, "choices": choices, "is_secret": is_secret}
    return field(default=default, metadata=facts, repr=not is_secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force. Relative paths count from the directory in which a program is started."""

    database_dsn: str = setting(
        "", "", "address of a PostgreSQL (postgresql+psycopg://…); empty: the embedded one", is_secret=True
    )
    database_embedded_dir: str = setting("var/db", "path", "directory of the embedded PostgreSQL")
    database_bin_dir: str = setting("", "path", "PostgreSQL programs for the embedded server; empty: found by itself")
    database_pool_size: int = setting(5, "connections", "connections a process keeps; as many more under load", 1, 100)
    database_statement_timeout_s: float = setting(60.0, "s", "a statement that takes longer is ended", 1, 3600)
    database_lock_timeout_s: float = setting(10.0, "s", "a statement that waits longer for a lock is ended", 0.1, 600)

    secrets_key_file: str = setting(
        "var/secrets.key", "path", "file with the keys of secrets, the newest first; mode 600"
    )
    secrets_key: str = setting("", "", "the keys themselves, instead of a file; not from a flag", is_secret=True)

    run_dir: str = setting("var", "path", "directory for tokens, pid files and logs of services started here")

    web_host: str = setting("127.0.0.1", "", "address the web service listens on")
    web_port: int = setting(8410, "", "port the web service listens on; 0: a free one", 0, 65535)
    web_processes: int = setting(1, "processes", "processes that serve requests, each with its threads and its pool", 1, 64)
    web_threads: int = setting(8, "threads", "requests served at the same time by one process", 1, 256)
    web_max_body_bytes: int = setting(16 * 1024**2, "bytes", "a larger request is refused with 413", 1024, 1024**3)
    web_stalled_s: float = setting(30.0, "s", "an answer of which a client takes nothing for so long ends", 0.1, 3600)
    web_policy_file: str = setting("", "path", "a site's policy document, laid over the shipped one; empty: none")

    web_max_upload_bytes: int = setting(
        1024**3, "bytes", "a larger file is refused; until it is whole it stands in a temporary file", 1024, 1024**4
    )

    client_url: str = setting("http://127.0.0.1:8410", "", "where dlm-admin finds the web service; also DLM_URL")
    client_token: str = setting("", "", "the token dlm-admin shows; also DLM_TOKEN", is_secret=True)
    client_token_file: str = setting("var/token", "path", "file with that token, read when client_token is empty")

    judge_interval_s: float = setting(10.0, "s", "longest sleep between two looks for work", 0.01, 3600)
    judge_batch_rules: int = setting(1000, "rules", "rules taken in one pass", 1, 100_000)
    judge_batch_changes: int = setting(500, "changes", "changes taken in one pass", 1, 100_000)
    judge_chunk_files: int = setting(50_000, "files", "files written in one transaction", 1, 1_000_000)
    judge_resync_interval_s: float = setting(86400.0, "s", "time between two full checks of an ok rule", 1, 30 * DAY)
    judge_trust_unverified: bool = setting(
        False, "", "count what producers registered for `ok` before dlm has read it; never a witness for a deletion"
    )

    conveyor_interval_s: float = setting(10.0, "s", "longest sleep between two looks for work", 0.01, 3600)
    conveyor_batch: int = setting(500, "requests", "requests taken in one pass", 1, 100_000)
    conveyor_lease_s: float = setting(300.0, "s", "time within which a taken request must end", 1, DAY)
    conveyor_max_active_per_storage: int = setting(1000, "requests", "requests active at one destination", 1, 1_000_000)
    conveyor_max_attempts: int = setting(6, "attempts", "attempts before a request is parked", 1, 100)
    conveyor_backoff_base_s: float = setting(10.0, "s", "wait after the first failure; doubles with each", 0, DAY)
    conveyor_backoff_max_s: float = setting(3600.0, "s", "longest wait between two attempts", 0, 7 * DAY)
    conveyor_parked_retry_s: float = setting(21600.0, "s", "a parked request is tried again after", 1, 30 * DAY)
    conveyor_threads: int = setting(4, "threads", "transfers at the same time in one process", 1, 256)

    reaper_interval_s: float = setting(10.0, "s", "longest sleep between two looks for work", 0.01, 3600)
    reaper_batch: int = setting(5000, "replicas", "replicas taken in one pass", 1, 100_000)
    reaper_lease_s: float = setting(120.0, "s", "time within which a taken deletion must end", 1, DAY)
    reaper_undo_window_s: float = setting(86400.0, "s", "an unlocked replica is kept this long", 0, 365 * DAY)

    auditor_interval_s: float = setting(10.0, "s", "longest sleep between two looks for work", 0.01, 3600)
    auditor_batch: int = setting(500, "replicas", "replicas verified in one pass", 1, 100_000)
    auditor_threads: int = setting(4, "threads", "replicas of one storage read at the same time", 1, 64)
    auditor_lease_s: float = setting(300.0, "s", "time within which a taken verification must end", 1, DAY)
    auditor_cycle_s: float = setting(30 * 86400.0, "s", "every replica is verified again within", 1, 3650 * DAY)
    auditor_probes: int = setting(2, "probes", "times a file must be missed before it counts as lost", 1, 10)

    breaker_window_s: float = setting(3600.0, "s", "losses and deletions are added up over this time", 1, 30 * DAY)
    breaker_loss_share: float = setting(0.10, "share", "a larger share of a storage lost waits for a person", 0, 1)
    breaker_delete_share: float = setting(0.5, "share", "a larger share of a storage to delete waits, too", 0, 1)
    breaker_floor_files: int = setting(10, "files", "so few losses or deletions never open the breaker", 0, 1_000_000)
    breaker_delete_files: int = setting(100_000, "files", "more deletions wait, whatever the share", 1, 10**9)

    log_level: str = setting("info", "", "least severity that is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", "", "for people, or one JSON object a line", choices=("text", "json"))


DECLARED: dict[str, Field[Any]] = {item.name: item for item in fields(Settings)}
_SECRET = (name for name, item in DECLARED.items() if item.metadata["is_secret"])
SECRET_VARIABLES = {"DLM_TOKEN", *(PREFIX + name.upper() for name in _SECRET)}


def load(
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from the file `path` (else DLM_CONFIG, else the first of FILES), the environment, and the flags.

    Raises InvalidInput, with the place and the key, for what is unknown or out of range; NotFound for a file that was
    named and is not there.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for where, name, text in [*_of_file(_file(path, environ)), *_of_environment(environ), *_of_flags(flags or {})]:
        values[name] = parse(name, text, where)
    return Settings(**values)


def for_others(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for programs that are not dlm's: ours, without the settings that are secret."""
    environ = os.environ if environ is None else environ
    return {variable: text for variable, text in environ.items() if variable not in SECRET_VARIABLES}


def forget_secrets(environ: MutableMapping[str, str] | None = None) -> None:
    """Take the secret settings out of the environment once they are read: no program that is started later has them."""
    environ = os.environ if environ is None else environ
    for variable in SECRET_VARIABLES & environ.keys():
        del environ[variable]


def flags_of(texts: Iterable[str]) -> dict[str, str]:
    """The flags, by name, that `section.key=value` texts give; InvalidInput for another form."""
    flags = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            hint = "write it as section.key=value, e.g. judge.interval_s=1"
            raise InvalidInput(f"--set {text} is no setting with its value", field="set", hint=hint)
        name = key.strip().replace(".", "_", 1)
        if name == "secrets_key":
            hint = "DLM_SECRETS_KEY, or a file that secrets.key_file names"
            raise InvalidInput("keys are not given as a flag: everybody on the host sees those", field="set", hint=hint)
        flags[name] = value
    return flags


def parse(name: str, text: str, where: str = "") -> Any:
    """The value of the declared setting `name` that `text` spells; InvalidInput if it does not, or out of range."""
    declared = DECLARED[name]
    place = f"{where}: " if where else ""
    value = _typed(type(declared.default), name, text.strip(), place)
    facts = declared.metadata
    if facts["choices"] and value not in facts["choices"]:
        raise InvalidInput(f"{place}{name} is one of {', '.join(facts['choices'])}, not {text!r}", field=name)
    too_low = facts["least"] is not None and not value >= facts["least"]  # written so that NaN is out of range
    too_high = facts["most"] is not None and not value <= facts["most"]
    if too_low or too_high:
        raise InvalidInput(f"{place}{name} is {facts['least']} to {facts['most']}, not {text}", field=name)
    return value


def section_and_key(name: str) -> tuple[str, str]:
    """Where a setting stands in the file: `judge_batch_rules` is `batch_rules` in [judge]."""
    section, _, key = name.partition("_")
    return section, key


def _typed(kind: type, name: str, text: str, place: str) -> Any:
    if kind is str:
        return text
    if kind is bool and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    words = {int: "a whole number", float: "a number", bool: "yes or no"}
    try:
        if kind is not bool:
            return kind(text.replace("_", "")) if kind is int else kind(text)
    except ValueError:
        pass
    raise InvalidInput(f"{place}{name} is {words[kind]}, not {text!r}", field=name)


def _file(path: str | None, environ: Mapping[str, str]) -> str | None:
    named = path or environ.get("DLM_CONFIG")
    if named and not Path(named).is_file():
        raise NotFound(f"there is no configuration file {named}", field="config")
    return named or next((name for name in FILES if Path(name).is_file()), None)


def _of_file(path: str | None) -> Iterator[tuple[str, str, str]]:
    if path is None:
        return
    parser = configparser.ConfigParser(interpolation=None, default_section="")  # % stands for itself in a DSN
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8"), source=path)
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {_without_lines(error)}", field="config") from None
    for section in parser.sections():
        for key, text in parser.items(section):
            yield path, _known(f"{section}_{key}", path, f"[{section}] {key}", DECLARED), text


def _without_lines(error: Exception) -> str:
    """What is wrong with a file, without the lines themselves: there may be a secret in them."""
    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"line {error.lineno} stands before the first [section]"
    if isinstance(error, configparser.ParsingError):
        return f"line {error.errors[0][0]} is neither a [section] nor key = value"
    return " ".join(str(error).split())


def _of_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for short, name in (("DLM_URL", "client_url"), ("DLM_TOKEN", "client_token")):
        if environ.get(short):
            yield short, name, environ[short]
    spelled = {PREFIX + name.upper() for name in DECLARED}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or variable.startswith(OTHER_PREFIX):
            continue
        _known(variable, "environment", variable, [*spelled, *OTHER_VARIABLES])
        yield variable, variable.removeprefix(PREFIX).lower(), environ[variable]


def _of_flags(flags: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name, text in flags.items():
        yield "flag", _known(name, "flag", name, DECLARED), text


def _known(name: str, where: str, shown: str, declared: Iterable[str]) -> str:
    """The name, when it is declared; InvalidInput with the nearest name that is, otherwise."""
    names = list(declared)
    if name in names:
        return name
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    hint = None
    if near:
        section, key = section_and_key(near[0])
        hint = f"Did you mean {f'[{section}] {key}' if shown.startswith('[') else near[0]}?"
    raise InvalidInput(f"{where}: {shown} is no setting", field=name, hint=hint)


# What is generated from the list


def example() -> str:
    """The text of etc/dlm.cfg.example: every setting with its default, commented out."""
    lines = ["# The settings and their defaults, made by `python -m dlm.config --example` from lib/dlm/config.py."]
    section = ""
    for item in DECLARED.values():
        new, key = section_and_key(item.name)
        if new != section:
            lines += ["", f"[{new}]"]
            section = new
        lines += [f"# {item.metadata['help']}{_unit(item)}", f"#{key} = {_shown(item)}".rstrip()]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The text of docs/reference/settings.md: a table for each section."""
    lines = REFERENCE_HEAD.splitlines()
    section = ""
    for item in DECLARED.values():
        new, key = section_and_key(item.name)
        if new != section:
            lines += ["", f"## {new}", "", "| key | default | unit | range | what it does |", "|---|---|---|---|---|"]
            section = new
        facts = item.metadata
        bounds = f"{_number(facts['least'])} – {_number(facts['most'])}" if facts["least"] is not None else ""
        allowed = ", ".join(f"`{choice}`" for choice in facts["choices"]) or bounds
        shown = f"`{_shown(item)}`" if _shown(item) else "empty"
        lines.append(f"| `{key}` | {shown} | {facts['unit']} | {allowed} | {facts['help']} |")
    return "\n".join(lines) + "\n"


REFERENCE_HEAD = """\
# Settings

Made by `python -m dlm.config --reference`; change `lib/dlm/config.py`.

A setting is taken from, in rising order: its default, the configuration file, the environment, a flag.
The file is what `--config` or `DLM_CONFIG` names, else the first of `var/dlm.cfg`, `etc/dlm.cfg`, `/etc/dlm/dlm.cfg`.
`batch_rules` in `[judge]` is `DLM_JUDGE_BATCH_RULES` in the environment. `DLM_URL` and `DLM_TOKEN` are short for
`DLM_CLIENT_URL` and `DLM_CLIENT_TOKEN`. A key that is not listed here is an error.
Relative paths count from the directory in which a program is started."""


def _shown(item: Field[Any]) -> str:
    if isinstance(item.default, bool):
        return "yes" if item.default else "no"
    return _number(item.default) if isinstance(item.default, (int, float)) else str(item.default)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _unit(item: Field[Any]) -> str:
    allowed = " | ".join(item.metadata["choices"])
    note = allowed or item.metadata["unit"]
    return f" ({note})" if note else ""


if __name__ == "__main__":
    texts = {"--example": example, "--reference": reference}
    if len(sys.argv) != 2 or sys.argv[1] not in texts:
        sys.exit("usage: python -m dlm.config --example | --reference")
    sys.stdout.write(texts[sys.argv[1]]())
