"""`dlm-web`: the app on waitress. It serves whether or not the database is up: until it is, requests answer 503."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import click
from flask import Flask
from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.wasyncore import dispatcher, loop

from dlm import config, effects, exits, logs
from dlm.config import Settings
from dlm.db.opening import open_database
from dlm.errors import DlmError, InvalidInput
from dlm.web import processes
from dlm.web.app import create_app
from dlm.web.channel import REFUSED_AT, Channel

log = logging.getLogger("dlm.web")

GRACE_S = 10.0
END_S = 5.0  # on top of that, until a process that is told to end is killed
BACKLOG = 1024
TURN_S = 1.0  # until it is noticed that a signal came
MAX_CONNECTIONS = 1000  # idle or slow ones cost a socket, not a thread
MAX_UNSENT_BYTES = 2 << 20  # of one answer: whoever writes it waits for its reader then


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", metavar="FILE", help="Settings from this file.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0: a free one.")
@click.version_option(package_name="dlm", prog_name="dlm-web", message="%(prog)s %(version)s")
def cli(path: str | None, host: str | None, port: int | None) -> None:
    """Serve the REST API until SIGTERM or Ctrl-C; requests under way are finished.

    It starts whether or not the database is up, and answers 503 until it is.
    """
    flags = {name: str(value) for name, value in (("web_host", host), ("web_port", port)) if value is not None}
    try:
        settings = config.load(path, flags=flags)
        config.forget_secrets()
        logs.configure(settings)
        effects.install_from_environment()
        serve(settings)
    except DlmError as error:
        click.echo(exits.told(error), err=True)
        sys.exit(exits.status_of(error))


def serve(settings: Settings) -> None:
    """Listen, and answer until a signal asks to stop."""
    pool_size = max(settings.database_pool_size, settings.web_threads)
    database = open_database(replace(settings, database_pool_size=pool_size))  # connects in each process by itself
    app = create_app(database, settings)
    bound = bind(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    for listener in bound:
        host, port = listener.getsockname()[:2]
        log.info("listening on http://%s:%s", f"[{host}]" if listener.family is socket.AF_INET6 else host, port)
    work = partial(answer, app, bound, settings)
    if settings.web_processes == 1:
        work(stop.is_set)
    else:
        processes.run(settings.web_processes, work, stop, partial(close, bound), GRACE_S + END_S)
    database.dispose()
    log.info("stopped")


def answer(app: Flask, bound: Sequence[socket.socket], settings: Settings, is_over: Callable[[], bool]) -> None:
    """Answer what comes to the sockets until it is over; what is under way then is finished."""
    sockets: dict[int, Any] = {}
    server = listen(app, settings, sockets, bound)
    while not is_over():
        turn(sockets, settings.web_stalled_s)
    finish(server, sockets)


def make_app() -> Flask:
    """The app for another WSGI server, from the settings in force: `gunicorn 'dlm.web.main:make_app()'`."""
    settings = config.load()
    logs.configure(settings)
    return create_app(open_database(settings), settings)


def bind(settings: Settings) -> list[socket.socket]:
    """A socket for each address that the host's name has; InvalidInput when one cannot be had."""
    host, bound = settings.web_host.removeprefix("[").removesuffix("]"), []
    if not host:
        raise InvalidInput("no address to listen on", field="web_host", hint="0.0.0.0 or :: for all that this host has")
    try:
        found = socket.getaddrinfo(host, settings.web_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in sorted({(family, address) for family, _, _, _, address in found}):
            bound.append(socket.create_server(address, family=family, backlog=BACKLOG))
    except (OSError, UnicodeError) as error:
        close(bound)
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"cannot listen on {host}:{settings.web_port}: {reason}", field="web_port") from error
    return bound


def close(bound: Sequence[socket.socket]) -> None:
    for listener in bound:
        listener.close()


def listen(app: Flask, settings: Settings, sockets: dict[int, Any], bound: Sequence[socket.socket]) -> Any:
    """The server on the bound sockets, listening; what it waits for is in `sockets`."""
    server = create_server(
        app,
        map=sockets,
        sockets=list(bound),
        threads=settings.web_threads,
        backlog=BACKLOG,
        connection_limit=MAX_CONNECTIONS,
        outbuf_high_watermark=MAX_UNSENT_BYTES,
        max_request_body_size=max(REFUSED_AT * settings.web_max_body_bytes, settings.web_max_upload_bytes) + 1,
        ident=None,
    )
    for listener in listeners(sockets):
        listener.channel_class = partial(Channel, limit_bytes=settings.web_max_body_bytes)
    return server


def turn(sockets: dict[int, Any], stalled_s: float) -> None:
    """Serve what is ready; close the connections whose answer nobody takes."""
    loop(timeout=TURN_S, use_poll=True, map=sockets, count=1)
    for channel in list(sockets.values()):
        if isinstance(channel, Channel):
            channel.close_if_stalled(stalled_s)


def finish(server: Any, sockets: dict[int, Any]) -> None:
    """Take no more connections; let requests under way end and answers leave, for at most GRACE_S; end the threads."""
    for listener in listeners(sockets):
        dispatcher.close(listener)  # its own close would take away what wakes this loop when an answer is ready
    limit = time.monotonic() + GRACE_S
    while time.monotonic() < limit and any(busy(sockets)):
        loop(timeout=TURN_S, use_poll=True, map=sockets, count=1)
    server.task_dispatcher.shutdown()


def listeners(sockets: dict[int, Any]) -> list[BaseWSGIServer]:
    """The sockets that take connections: one per address that the host's name has."""
    return [item for item in sockets.values() if isinstance(item, BaseWSGIServer)]


def busy(sockets: dict[int, Any]) -> Iterator[bool]:
    """Of every connection: has it a request under way, or an answer that has not left?"""
    for channel in list(sockets.values()):
        if isinstance(channel, HTTPChannel):
            yield bool(channel.requests or channel.total_outbufs_len)


def main() -> None:
    cli.main(prog_name="dlm-web")


if __name__ == "__main__":
    main()
