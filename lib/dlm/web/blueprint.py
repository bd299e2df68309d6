"""flask-smorest, told our ways: strict bodies, one error body, answers documented and passed through.

What views return was made by the core as JSON-ready dicts; the response schemas describe it (a test holds them to it),
so that a thousand rows are not copied field by field only to be shown.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, NoReturn

from flask import Request, request
from flask_smorest import Api as SmorestApi
from flask_smorest import Blueprint as SmorestBlueprint
from flask_smorest.spec import prepare_response
from marshmallow import INCLUDE, RAISE, Schema, fields, validate
from webargs import core
from webargs.flaskparser import FlaskParser

from dlm.errors import InvalidInput
from dlm.types import Page
from dlm.web.body import NDJSON, read_json, read_object
from dlm.web.problem import MAX_FIELDS, MIMETYPE

MAX_PAGE = 1000
UNKNOWN = "Unknown field."
MISSING = fields.Field.default_error_messages["required"]


class Answer(Schema):
    """The base of what is answered: it may gain members without being a new version."""

    class Meta:
        unknown = RAISE


class Problem(Answer):
    """What went wrong (RFC 9457). `type` is stable, `field` the input to change, `hint` the way out; some say more."""

    class Meta:
        unknown = INCLUDE

    type = fields.String(required=True, metadata={"example": "/problems/not-found"})
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    field = fields.String()
    hint = fields.String()
    fields_ = fields.List(fields.Dict(), data_key="fields", metadata={"description": "every field that is wrong"})
    request_id = fields.String(required=True)


class PageQuery(Schema):
    """A page: at most `limit` items after the cursor that the page before gave as `next`."""

    limit = fields.Integer(load_default=100, validate=validate.Range(1, MAX_PAGE))
    after = fields.String(validate=validate.Length(1, 4096), metadata={"description": "`next` of the page before"})


def page_of(query: dict[str, Any]) -> Page:
    """The page that the query asks for; what is left in `query` are the filters."""
    return Page(query.pop("limit"), query.pop("after", None))


class Parser(FlaskParser):
    """Reads strict bodies and turns what a schema refuses into InvalidInput."""

    DEFAULT_VALIDATION_STATUS = 400
    DEFAULT_UNKNOWN_BY_LOCATION = {**FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION, "query": RAISE}

    def _raw_load_json(self, req: Request) -> Any:
        if req.content_length == 0 or (req.content_length is None and not req.get_data(cache=True)):
            return core.missing
        return read_json(req)

    def handle_error(self, error: Any, req: Request, schema: Schema, **kwargs: Any) -> NoReturn:
        faults = sorted(_faults(next(iter(error.messages.values()))), key=lambda fault: fault[1] != UNKNOWN)
        where, what = faults[0]  # an unknown field first: it may be the one that is missing, misspelt
        listed = [{"field": name, "detail": text} for name, text in faults[:MAX_FIELDS]]
        hint = _meant(where, schema, faults) if what == UNKNOWN else _described(where, schema)
        raise InvalidInput(f"{where}: {what}", field=where, hint=hint, fields=listed) from error


class Api(SmorestApi):
    """The API whose every operation may answer with a problem."""

    ERROR_SCHEMA = Problem

    def _register_responses(self) -> None:
        described = [(status.name, status.phrase) for status in http.HTTPStatus if status >= 400]
        for name, text in [*described, (self.DEFAULT_ERROR_RESPONSE_NAME, "What went wrong")]:
            response = {"description": text, "schema": Problem}
            prepare_response(response, self.spec, MIMETYPE)
            self.spec.components.response(name, response, lazy=True)


class Blueprint(SmorestBlueprint):
    """A noun's routes."""

    ARGUMENTS_PARSER = Parser()

    def arguments(self, schema: Any, **options: Any) -> Callable[[Any], Any]:
        """Give the view what the schema reads; one instance for all requests, as making one copies every field."""
        made: Callable[[Any], Any] = super().arguments(schema() if isinstance(schema, type) else schema, **options)
        return made

    def answers(self, schema: type[Schema], status: int = 200, *, streams: bool = False) -> Callable[[Any], Any]:
        """Document what the view returns; `streams` when it also comes as NDJSON."""

        def decorate(view: Any) -> Any:
            documented = self.alt_response(status, schema=schema, success=True)(view)
            if streams:
                described = {"schema": {"type": "string"}, "content_type": NDJSON, "success": True}
                documented = self.alt_response(status, **described)(documented)
            return documented

        return decorate

    def json_body(self, schema: Any, description: str) -> Callable[[Any], Any]:
        """Give the view the strict JSON object as it is, for free-form objects and for bulk; `schema` documents it."""

        def decorate(view: Any) -> Any:
            @wraps(view)
            def reading(*args: Any, **kwargs: Any) -> Any:
                return view(read_object(request), *args, **kwargs)

            content = {"application/json": {"schema": schema}}
            body = {"required": True, "description": description, "content": content}
            return self.doc(requestBody=body)(reading)

        return decorate

    def empties(self, view: Any) -> Any:
        """Document that the view answers 204 without a body."""
        return self.alt_response(204, description="done", success=True)(view)


def many(schema: type[Schema], name: str) -> type[Schema]:
    """The schema of {"items": […]}."""
    return Answer.from_dict({"items": fields.List(fields.Nested(schema), required=True)}, name=name)


def paged(schema: type[Schema], name: str) -> type[Schema]:
    """The schema of {"items": […], "next": cursor}."""
    cursor = fields.String(
        allow_none=True, required=True, metadata={"description": "give it as `after`; null: the end"}
    )
    return Answer.from_dict({"items": fields.List(fields.Nested(schema), required=True), "next": cursor}, name=name)


def _faults(messages: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(field, what is wrong) for every leaf of marshmallow's messages. Their depth is that of the schema."""
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            step = f"[{key}]" if isinstance(key, int) else f".{key}" if path else str(key)
            yield from _faults(inner, path if key == "_schema" else path + step)
    else:
        for text in messages if isinstance(messages, list) else [messages]:
            yield path or "body", str(text)


def _described(where: str, schema: Schema) -> str | None:
    """What the API's documentation says of the field."""
    field = schema.fields.get(where)
    return field.metadata.get("description") if field is not None else None


def _meant(where: str, schema: Schema, faults: list[tuple[str, str]]) -> str:
    """What the unknown field may have been meant to be; rather one that is missing than one that is only alike."""
    level, _, name = where.rpartition(".")
    missing = [path.rpartition(".")[2] for path, what in faults if what == MISSING and path.rpartition(".")[0] == level]
    if missing:
        near = get_close_matches(name, missing, n=1)
        return f"Did you mean {near[0]}?" if near else f"missing here: {', '.join(missing)}"
    for step in where.split(".")[:-1]:  # rules[0].copys: the names known there
        outer = schema.fields.get(step.partition("[")[0])
        nested = outer.inner if isinstance(outer, fields.List) else outer
        schema = nested.schema if isinstance(nested, fields.Nested) else schema
    names = sorted(field.data_key or name for name, field in schema.fields.items())
    near = get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
