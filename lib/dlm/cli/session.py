"""What every command shares: the settings, the client, the output, and how commands and errors look."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import click

from dlm import config, exits
from dlm.cli.client import Client
from dlm.cli.output import Output
from dlm.config import Settings
from dlm.errors import DlmError, InvalidInput

INTERRUPTED = 130
MAX_TOKEN_BYTES = 4096
URL_FILE = "url"  # in the run directory, written by `up`


class Session:
    """One run of dlm-admin. Settings are read, and the service is spoken to, only when a command needs it."""

    def __init__(self, config_path: str | None = None, flags: dict[str, str] | None = None) -> None:
        self.config_path = config_path
        self.flags = flags or {}
        self.as_json = False

    @cached_property
    def settings(self) -> Settings:
        return config.load(self.config_path, flags=self.flags)

    @cached_property
    def client(self) -> Client:
        settings = self.settings
        if self.flags.get("client_token") == "":
            raise InvalidInput("the token is empty", field="token", hint="leave --token out to use the file's")
        path = Path(os.path.abspath(settings.client_token_file))
        return Client(self.url, settings.client_token or read_token(path), str(path))

    @property
    def url(self) -> str:
        """Where the service is: as it was said, else where `up` left it beside the token, else where it usually is."""
        url = self.settings.client_url
        was_said = "client_url" in self.flags or url != config.DECLARED["client_url"].default
        if was_said or any(name in os.environ for name in ("DLM_URL", "DLM_CLIENT_URL")):
            return url
        try:
            return (self.run_dir / URL_FILE).read_text().strip() or url
        except OSError:
            return url

    @property
    def out(self) -> Output:
        return Output(self.as_json)

    @property
    def run_dir(self) -> Path:
        return Path(os.path.abspath(self.settings.run_dir))


def read_token(path: Path) -> str:
    """The token in the file, empty when there is none; InvalidInput when others may read it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise InvalidInput(f"{path} is open to others", field="token", hint=f"chmod 600 {path}")
            return file.read(MAX_TOKEN_BYTES).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="token") from error


def _take_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    session = ctx.find_object(Session)
    if value and session is not None:
        session.as_json = True


class Verb(click.Command):
    """A command. Every one takes --json."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        help_text = "For machines: one JSON object, one a line where there are many."
        self.params.append(
            click.Option(["--json"], is_flag=True, expose_value=False, callback=_take_json, help=help_text)
        )


class Noun(click.Group):
    """A group of commands about one noun."""

    command_class = Verb


class Root(click.Group):
    """dlm-admin: the one place where errors become a line on standard error and an exit status."""

    command_class = Verb
    group_class = Noun

    def main(self, args: Any = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        given = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in given
        try:
            result = super().main(given, prog_name or "dlm-admin", **{**extra, "standalone_mode": False})
            sys.exit(result if isinstance(result, int) else exits.OK)  # what ctx.exit() was given
        except DlmError as error:
            _end(error, as_json)
        except click.UsageError as error:
            _end(_of_usage(error), as_json)
        except click.ClickException as error:
            _end(DlmError(error.format_message()), as_json)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) has enough. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(exits.OK)
        except OSError as error:
            _end(_of_system(error), as_json)


def _of_system(error: OSError) -> DlmError:
    """What this host refused to a command: a directory that cannot be written to, a disk that is full."""
    why = error.strerror or str(error) or type(error).__name__
    return DlmError(f"{error.filename}: {why}" if error.filename is not None else why)


def _of_usage(error: click.UsageError) -> DlmError:
    text = error.format_message().rstrip(".")
    hint = f"{error.ctx.command_path} --help" if error.ctx is not None else None
    return InvalidInput(text[:1].lower() + text[1:], hint=hint)


def _end(error: DlmError, as_json: bool) -> NoReturn:
    click.echo(exits.told_as_json(error) if as_json else exits.told(error), err=True)
    sys.exit(exits.status_of(error))


pass_session = click.make_pass_decorator(Session)
