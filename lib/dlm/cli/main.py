"""dlm-admin: the commands, put together."""

from __future__ import annotations

from collections.abc import Sequence

import click

from dlm import config as declared
from dlm.cli import (
    accounts,
    configuring,
    databases,
    dids,
    doctor,
    putting,
    registering,
    replicas,
    requests,
    rules,
    running,
    secrets,
    sites,
    storages,
    verifying,
    watching,
)
from dlm.cli.session import Root, Session

TOKEN_HELP = "Else DLM_TOKEN, else the file client.token_file. Other users see it in the list of processes."


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--url", metavar="URL", help="Where the web service is; else DLM_URL, else the setting client.url.")
@click.option("--token", metavar="TOKEN", help=TOKEN_HELP)
@click.option("--config", "path", metavar="FILE", help="Settings from this file; else DLM_CONFIG.")
@click.option("--set", "flags", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")
@click.version_option(package_name="dlm", prog_name="dlm-admin", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, url: str | None, token: str | None, path: str | None, flags: Sequence[str]) -> None:
    """dlm keeps the promises people make about data.

    Exit status: 0 done, 1 failed or not allowed, 2 the input must be changed, 75 not possible now, try again later.
    """
    given = {name: value for name, value in (("client_url", url), ("client_token", token)) if value is not None}
    ctx.obj = Session(path, {**declared.flags_of(flags), **given})


COMMANDS: tuple[click.Command, ...] = (
    watching.status,
    watching.why,
    rules.rule,
    dids.did,
    replicas.replica,
    requests.request,
    storages.storage,
    storages.expression,
    secrets.secret,
    sites.site,
    accounts.account,
    accounts.token,
    accounts.scope,
    watching.event,
    watching.breaker,
    watching.daemon,
    running.up,
    running.down,
    databases.db,
    doctor.doctor,
    verifying.verify,
    configuring.config,
)
for command in COMMANDS:
    cli.add_command(command)
for command in (registering.register, putting.put, putting.get):
    dids.did.add_command(command)


def main() -> None:
    cli.main()


if __name__ == "__main__":
    main()
