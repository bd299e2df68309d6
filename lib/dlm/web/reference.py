"""`python -m dlm.web.reference` writes docs/reference/rest.md: the conventions, and every route from the app itself."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

from dlm.config import Settings
from dlm.core.authorize import OWN, shipped
from dlm.db.engine import Database
from dlm.web.access import PUBLIC
from dlm.web.app import create_app
from dlm.web.problem import KINDS

HEAD = """\
# REST

Made by `python -m dlm.web.reference`; change `lib/dlm/web/`. The whole description is at `/api/v1/openapi.json`
(OpenAPI 3.1), a page to read and try it at `/api/v1/docs`; both come from the server itself and need no internet.

## Conventions

- **Token**: `Authorization: Bearer dlm_…` (`dlm-admin token add ACCOUNT`, or `POST /api/v1/tokens`). Without a valid
  one 401, without the permission 403. The policy says which roles hold a permission: `dlm/core/policies/default.toml`,
  and a site's own document over it (`web_policy_file`). *own* means: only what the account owns.
- **DIDs** stand in bodies as `scope:name`, in addresses as `/<what>/<scope>/<name>` with the name's slashes as they
  are and other special characters percent-encoded as UTF-8. The first segment says what is asked, so no name is
  ambiguous.
- **Bodies** are JSON, whatever the Content-Type; duplicate keys, NaN, whole numbers beyond 64 bits, unknown members
  and nesting deeper than 32 are refused. `web_max_body_bytes` limits the size (413). Compressed bodies are refused
  (415).
- **Lists** are pages: `limit` (at most 1000), `after` (the `next` of the page before), answered as
  `{"items": […], "next": cursor or null}`. With `Accept: application/x-ndjson` most lists come whole, one object a
  line, read page by page in short transactions: memory stays flat, and a row changed meanwhile shows as it then is.
- **Errors** are `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, the `field` to change as
  the caller named it, a `hint`, `request_id`, and facts such as the id of the rule that exists already.
- **Retries**: `Idempotency-Key` on `POST /rules`, `/rules/many` and `/rules/{rule}/move` makes them exactly-once (200 instead of 201 when
  the rule stood already, 409 when the key came with any other wish). Registering, attaching, revoking may simply
  be repeated. 503 says when in `Retry-After`.
- **Request id**: `X-Request-Id` (8 to 64 of `A-Za-z0-9._-`) is kept, otherwise made; it is in the answer, the log,
  and the events of what the request changed.
- **Many at once**: up to 10,000 files, DIDs, rules, children in a call, all or none. Files also come as NDJSON lines,
  with `storage`, `scope` and `dataset` in the query.

Measured on 2 shared cores, PostgreSQL 18 beside it, one client in the same process: registering 10,000 files a call
into a dataset 54,000 files/s (a body of 0.7 MB), listing replicas as NDJSON 42,000/s, showing a DID 1,070/s, declaring
one rule a call 370/s.

```
curl -s -H "Authorization: Bearer $TOKEN" $URL/api/v1/rules \\
  -d '{"did": "ska:eb-m001", "copies": 2, "storages": "tier=1&country=AU", "spread": "site"}'
curl -s -H "Authorization: Bearer $TOKEN" $URL/api/v1/replicas \\
  -d '{"storage": "perth-disk", "scope": "ska", "dataset": "ska:eb-m001", "files": [{"name": "a", "size_bytes": 5}]}'
```
"""


def reference() -> str:
    """The text of docs/reference/rest.md. No database is needed."""
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    document = json.loads(create_app(database, Settings()).extensions["dlm.openapi"])
    database.dispose()
    return "\n".join([HEAD, *_problems(), *_routes(document)]) + "\n"


def _problems() -> list[str]:
    rows = [f"| `/problems/{slug}` | {kind.status} | {kind.title} | {kind.meaning} |" for slug, kind in KINDS.items()]
    return ["## Problem types", "", "| type | status | title | what to do |", "|---|---|---|---|", *rows, ""]


def _routes(document: dict[str, Any]) -> list[str]:
    tables: dict[str, list[str]] = defaultdict(list)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "x-permission" in operation:
                tables[operation["tags"][0]].append(_row(method, path, operation))
    lines = ["## Routes"]
    for tag in document["tags"]:
        title = f"### {tag['name']}"
        lines += ["", title, "", tag["description"] + ".", "", "| route | what it does | roles |", "|---|---|---|"]
        lines += tables[tag["name"]]
    return lines


def _row(method: str, path: str, operation: dict[str, Any]) -> str:
    name = operation["x-permission"]
    roles = "public" if name == PUBLIC else f"`{name}`: {_roles(name)}"
    return f"| `{method.upper()} {path}` | {operation['summary']} | {roles} |"


def _roles(permission: str) -> str:
    policy = shipped()
    own = [f"{role} ({OWN[1:]})" for role in sorted(policy.own[permission])]
    return ", ".join([*sorted(policy.everywhere[permission]), *own])


if __name__ == "__main__":
    sys.stdout.write(reference())
