"""Who may do what: a policy document maps permissions to roles, and what it does not grant is denied.

`authorize` is asked for every route (web) with the permission that the route names, and again with the owner once that
is known. Owners are compared by account name, which is unique and never given away.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from dlm.errors import Denied, InvalidInput, NotFound
from dlm.types import Identity

OWN = ":own"


@dataclass(frozen=True, slots=True)
class Policy:
    """The roles that hold each permission: on everything, or only on what the account owns."""

    everywhere: Mapping[str, frozenset[str]]
    own: Mapping[str, frozenset[str]]

    def permissions(self) -> frozenset[str]:
        return frozenset(self.everywhere)

    def allows(self, identity: Identity, permission: str, owner: str | None = None) -> bool:
        """True when a role of the identity holds the permission, on everything or on what `owner` owns."""
        if _is_dlm(identity) or identity.roles & self.everywhere.get(permission, frozenset()):
            return True
        return owner is not None and owner == identity.account and self.allows_own(identity, permission)

    def allows_own(self, identity: Identity, permission: str) -> bool:
        """True when a role of the identity holds the permission on what the identity itself owns."""
        return bool(identity.roles & self.own.get(permission, frozenset()))


def authorize(identity: Identity, permission: str, *, owner: str | None = None) -> None:
    """Return when the policy in force allows it, else raise Denied. The message names the permission, no object."""
    rules = in_force()
    if rules.allows(identity, permission, owner):
        return
    everywhere = sorted(rules.everywhere.get(permission, ()))
    if rules.allows_own(identity, permission):
        raise Denied(
            f"{identity.account} may do this only to what it owns",
            hint=f"the permission {permission} on everything comes with: {', '.join(everywhere)}",
            permission=permission,
        )
    raise Denied(
        f"{identity.account} has not the permission {permission}",
        hint=f"ask an administrator; roles that have it: {', '.join(everywhere) or 'none'}",
        permission=permission,
    )


_in_force: Policy | None = None


def in_force() -> Policy:
    """The policy of this process: the one put in force, else the shipped one."""
    return _in_force or shipped()


def put_in_force(policy: Policy | None) -> None:
    """Decide by this policy in this process from now on; None: by the shipped one."""
    global _in_force
    _in_force = policy


@cache
def shipped() -> Policy:
    """The policy that comes with dlm."""
    return _policy(_read((files("dlm.core") / "policies" / "default.toml").read_text(encoding="utf-8"), "default.toml"))


def load(path: Path) -> Policy:
    """The shipped policy with the site's document laid over it, permission by permission.

    NotFound when there is none; InvalidInput for one that is not TOML, names a permission that dlm has not, or grants
    it to what is no role.
    """
    if not path.is_file():
        raise NotFound(f"there is no policy document {path}", field="web_policy_file")
    ours = shipped()
    theirs = _policy(_read(path.read_text(encoding="utf-8"), str(path)))
    for name in theirs.permissions() - ours.permissions():
        near = get_close_matches(name, ours.permissions(), n=1)
        hint = f"Did you mean {near[0]}?" if near else None
        raise InvalidInput(f"{path}: {name!r} is no permission", field=name, hint=hint)
    return Policy({**ours.everywhere, **theirs.everywhere}, {**ours.own, **theirs.own})


def _is_dlm(identity: Identity) -> bool:
    """True for dlm's own daemons and host commands, which have no account. An account's role `daemon` means nothing."""
    return identity.account_id is None and "daemon" in identity.roles


def _read(text: str, where: str) -> Mapping[str, Any]:
    """The table [permissions] of a document."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{where} cannot be read: {error}", field="policy") from error
    table = document.pop("permissions", None)
    if document or not isinstance(table, dict):
        raise InvalidInput(f"{where}: a policy has one table, [permissions]", field="policy")
    for name, roles in table.items():
        if not isinstance(roles, list) or not all(isinstance(role, str) and role.strip(":") for role in roles):
            raise InvalidInput(
                f"{where}: {name} is not a list of roles", field=name, hint='write it as ["admin", "user:own"]'
            )
    return table


def _policy(table: Mapping[str, Any]) -> Policy:
    everywhere = {name: frozenset(role for role in roles if not role.endswith(OWN)) for name, roles in table.items()}
    own = {
        name: frozenset(role.removesuffix(OWN) for role in roles if role.endswith(OWN)) for name, roles in table.items()
    }
    return Policy(everywhere, own)
