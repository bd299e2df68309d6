"""The real app over a real database, with callers of each role."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse

from dlm.config import Settings
from dlm.core import accounts
from dlm.db.engine import Database
from dlm.web.app import create_app
from web import described

API = "/api/v1"


class Caller:
    """Calls the API with one account's token."""

    def __init__(self, app: Flask, token: str | None = None) -> None:
        self.app = app
        self.client = Client(app)
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, status: int | None = None, **kwargs: Any) -> TestResponse:
        headers = {**self.headers, **kwargs.pop("headers", {})}
        response = self.client.open(API + path, method=method, headers=headers, **{"buffered": True, **kwargs})
        assert status is None or response.status_code == status, response.text
        described.check(self.app, response, method)
        return response

    def get(self, path: str, status: int = 200, **kwargs: Any) -> Any:
        return self.call("GET", path, status, **kwargs).json

    def post(self, path: str, body: Any, status: int = 201, **kwargs: Any) -> Any:
        return self.call("POST", path, status, json=body, **kwargs).json

    def patch(self, path: str, body: Any, status: int = 200) -> Any:
        return self.call("PATCH", path, status, json=body).json

    def delete(self, path: str, status: int = 204, **kwargs: Any) -> Any:
        return self.call("DELETE", path, status, **kwargs).json


@pytest.fixture
def app(database: Database) -> Flask:
    return create_app(database, Settings())


@pytest.fixture
def nobody(app: Flask) -> Caller:
    """A caller without a token."""
    return Caller(app)


def caller(app: Flask, database: Database, name: str, *roles: str) -> Caller:
    """A caller with a new account of these roles."""
    with database.begin("test") as tx:
        accounts.add_account(tx, name, roles=roles)
        text, _ = accounts.make_token(tx, name, "test")
    return Caller(app, text)


@pytest.fixture
def admin(app: Flask, database: Database) -> Caller:
    return caller(app, database, "root", "admin")


@pytest.fixture
def user(app: Flask, database: Database) -> Caller:
    return caller(app, database, "ada", "user")


@pytest.fixture
def other(app: Flask, database: Database) -> Caller:
    return caller(app, database, "bob", "user")


@pytest.fixture
def reader(app: Flask, database: Database) -> Caller:
    return caller(app, database, "eve", "reader")
