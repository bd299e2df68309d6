"""`python -m dlm.cli.reference` writes docs/reference/cli.md: every command of dlm-admin, from the program itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click

from dlm.cli.main import cli

HEAD = """\
# dlm-admin

Made by `python -m dlm.cli.reference`; change `lib/dlm/cli/`.

- **Where and who**: `--url` and `--token`, else `DLM_URL` and `DLM_TOKEN`, else the settings `client.url`,
  `client.token`, `client.token_file` (a file that only its owner can read).
- **Machines** give `--json` to any command: one object on a line, a line for each where there are many; errors too, on
  standard error. Keys are those of the REST API.
- **Exit status**: 0 done · 1 failed or not allowed · 2 the input must be changed · 75 not possible now, the same call
  may work later · 130 interrupted.
- **Words**: durations `365d` `12h` `30m` `45s` `1h30m`; sizes `5GB` (1000³) `5GiB` (1024³); DIDs `scope:name`.
- `rule watch`, `rule add --watch` and `storage check` show a bar on a terminal and a line a minute elsewhere; Ctrl-C
  stops watching, never the work.
- `up`, `down`, `db`, `doctor`, `verify` and `config` work on the host, with its settings; all others speak to the web
  service and run anywhere.
"""


def reference() -> str:
    """The text of docs/reference/cli.md."""
    parts = [HEAD]
    context = click.Context(cli, info_name="dlm-admin")
    parts += _options(cli, "## Before the command")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts += _section(command, click.Context(command, info_name=name, parent=context), 2)
    return "\n".join(parts).rstrip() + "\n"


def _section(command: click.Command, context: click.Context, depth: int) -> Iterator[str]:
    if isinstance(command, click.Group):
        yield f"{'#' * depth} {context.command_path}\n\n{_help(command)}\n"
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and below.name == name:  # else another name of one that is shown
                yield from _section(below, click.Context(below, info_name=name, parent=context), depth + 1)
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"{'#' * depth} {context.command_path}\n\n`{usage}`\n\n{_help(command)}\n"
    yield from _options(command)


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "")


def _options(command: click.Command, head: str = "") -> Iterator[str]:
    """A line for each option; --json and --help, which all have, are in the head of the page."""
    lines = []
    for param in command.params:
        if not isinstance(param, click.Option) or "--json" in param.opts:
            continue
        record = param.get_help_record(click.Context(command))
        assert record is not None
        spelled, text = (part.replace("|", "\\|") for part in record)
        lines.append(f"- `{spelled}`{f' {text}' if text else ''}")
    if lines:
        yield (f"{head}\n\n" if head else "") + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
