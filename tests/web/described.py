"""Holds every answer of a test to what the OpenAPI document says of it."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import jsonschema_rs
from flask import Flask
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse


def check(app: Flask, response: TestResponse, method: str) -> None:
    """Fail when the answer has a status, a type or a member that the document does not tell."""
    try:
        rule, _ = app.url_map.bind_to_environ(response.request.environ).match(method=method, return_rule=True)
    except HTTPException:
        return  # no route of ours
    text = app.extensions["dlm.openapi"]
    path = re.sub(r"<(?:[^:>]+:)?([^>]+)>", r"{\1}", rule.rule)
    described = document(text)["paths"].get(path, {}).get(method.lower(), {}).get("responses")
    if described is None:
        return  # a route that a test added
    answer = described.get(str(response.status_code)) or described["default"]
    if "$ref" in answer:
        answer = document(text)["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    content = answer.get("content", {})
    if not content:
        assert not response.get_data(), f"{method} {path} {response.status_code} is described as empty"
        return
    if "*/*" in content:
        return
    assert response.mimetype in content, f"{method} {path} answers {response.mimetype}, described are {list(content)}"
    if response.mimetype.endswith("json"):
        validator(text, json.dumps(content[response.mimetype]["schema"])).validate(response.json)


@cache
def document(text: str) -> dict[str, Any]:
    return json.loads(text)


@cache
def validator(text: str, schema: str) -> Any:
    whole = {**json.loads(schema), "components": document(text)["components"]}
    return jsonschema_rs.validator_for(whole, validate_formats=True)
