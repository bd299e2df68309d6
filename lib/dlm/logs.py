"""Logging of a service: lines for people, or one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from dlm.config import Settings

# They tell at INFO what only their own developers want to read.
QUIET = ("alembic", "sqlalchemy", "waitress", "apscheduler")
# They tell whole requests at DEBUG, headers with tokens and all.
TALKATIVE = ("botocore", "boto3", "urllib3", "asyncssh", "asyncio")


class JsonLines(logging.Formatter):
    """One object a record: at, level, logger, message, thread, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(settings: Settings) -> None:
    """Send the process's log to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for name in (*QUIET, *TALKATIVE):
        logging.getLogger(name).setLevel(logging.WARNING)
