"""`/docs`: one page about all routes, made from the OpenAPI description, without script and without network.

`/docs/interactive` is Swagger UI, which sends requests from the browser; its files are in `static/`.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from . import html
from .problems import Problem

router = APIRouter(include_in_schema=False)
_INTERACTIVE = "/docs/interactive"
_FILES = Path(__file__).parent / "static" / "swagger-ui"
_MEDIA_TYPES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "start.js": "text/javascript"}
#: Swagger UI writes styles into its elements, and has images in its style sheet.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
}
_PROBLEM = "application/problem+json"


@router.get("/")
async def root(request: Request) -> RedirectResponse:
    """Redirect to the page of all routes."""
    return RedirectResponse(f"{_root(request)}/docs")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Show all routes."""
    schema = request.app.openapi()
    info = schema["info"]
    lines = _Page(schema, str(request.base_url).rstrip("/"), _root(request)).lines()
    return html.page(f"{info['title']} {info['version']}", *lines)


@router.get(_INTERACTIVE)
async def interactive(request: Request) -> HTMLResponse:
    """Show Swagger UI."""
    files = f"{_root(request)}/docs/files"
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Supervisor</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href='data:,'>"
        f"<link rel=stylesheet href='{files}/swagger-ui.css'><div id=swagger-ui></div>"
        f"<script src='{files}/swagger-ui-bundle.js'></script>"
        f"<script src='{files}/start.js' data-openapi='{_root(request)}/openapi.json'></script></html>\n"
    )
    return HTMLResponse(text, headers=_HEADERS)


@router.get("/docs/files/{name}")
async def file(name: str) -> Response:
    """Send a file of Swagger UI; the large ones are stored gzipped, which every browser takes."""
    if name not in _MEDIA_TYPES:
        raise Problem("not-found")
    headers = {"Cache-Control": "max-age=86400"}
    path = _FILES / name
    if not path.exists():
        path, headers["Content-Encoding"] = _FILES / f"{name}.gz", "gzip"
    return FileResponse(path, headers=headers, media_type=_MEDIA_TYPES[name])


def _root(request: Request) -> str:
    """Return the path under which a proxy serves this service, for links."""
    return escape(request.scope.get("root_path", "").rstrip("/"), quote=True)


class _Page:
    """Renders a description as HTML."""

    def __init__(self, schema: Mapping[str, Any], base: str, root_path: str) -> None:
        """`base` is the service's address, for the commands; `root_path` begins the links."""
        self._schema = schema
        self._models: Mapping[str, Any] = schema["components"]["schemas"]
        self._base = base
        self._root = root_path

    def lines(self) -> Iterator[str]:
        """Return the parts of the page."""
        yield f"<p>{escape(self._schema['info'].get('summary', ''))}</p>"
        yield f"<p><a href='{self._root}/openapi.json'>/openapi.json</a> describes the routes for programs;"
        yield f" <a href='{self._root}{_INTERACTIVE}'>{_INTERACTIVE}</a> sends requests from the browser;"
        yield f" <a href='{self._root}/ui'>/ui</a> is the dashboard.</p>"
        for tag in self._schema.get("tags", []):
            yield f"<h2>{escape(tag['name'])}</h2><p>{escape(tag.get('description', ''))}</p>"
            for path, operations in self._schema["paths"].items():
                for method, operation in operations.items():
                    if tag["name"] in operation.get("tags", []):
                        yield from self._operation(path, method.upper(), operation)
        yield "<h2 id=schemas>schemas</h2><p>The members of requests and answers.</p>"
        for name, model in self._models.items():
            yield from self._model(name, model)

    def _operation(self, path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
        head = f"<b class=method>{method}</b> <code>{escape(path)}</code> {escape(operation.get('summary', ''))}"
        yield f"<details id='{escape(operation['operationId'])}'><summary>{head}</summary>"
        for paragraph in operation.get("description", "").split("\n\n"):
            yield f"<p>{escape(paragraph)}</p>"
        if parameters := operation.get("parameters", []):
            yield f"<h4>Parameters</h4><table>{''.join(map(_parameter, parameters))}</table>"
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            yield f"<h4>Body</h4><p><code>{escape(kind)}</code>{self._link(media)}</p>{self._example(media)}"
        yield f"<h4>Command</h4><pre>{escape(self._curl(path, method, operation))}</pre><h4>Answers</h4>"
        errors = []
        for status, answer in sorted(operation["responses"].items()):
            if _PROBLEM in answer.get("content", {}):
                errors.append((status, answer))
            else:
                yield from self._answer(status, answer)
        yield f"<h4>Errors</h4><table>{''.join(self._error(*one) for one in errors)}</table></details>"

    def _answer(self, status: str, answer: Mapping[str, Any]) -> Iterator[str]:
        yield f"<p><b>{escape(status)}</b> {escape(answer.get('description', ''))}</p>"
        for name, header in answer.get("headers", {}).items():
            yield f"<p><code>{escape(name)}</code>: {escape(header.get('description', ''))}</p>"
        for kind, media in answer.get("content", {}).items():
            yield f"<p><code>{escape(kind)}</code>{self._link(media)}</p>{self._example(media)}"

    def _error(self, status: str, answer: Mapping[str, Any]) -> str:
        kinds = answer.get("x-problems", {})
        links = [f"<a href='{self._root}/problems/{kind}'>{escape(title)}</a>" for kind, title in kinds.items()]
        return f"<tr><td><b>{escape(status)}</b><td>{'; '.join(links) or escape(answer.get('description', ''))}"

    def _link(self, media: Mapping[str, Any]) -> str:
        names = [escape(name) for part in _parts(media.get("schema", {})) if (name := _name(part))]
        return " or".join(f" <a href='#schema-{name}'>{name}</a>" for name in names)

    def _example(self, media: Mapping[str, Any]) -> str:
        is_given = "example" in media or "examples" in media
        whole = [media] if is_given else [{"schema": part} for part in _parts(media.get("schema", {}))]
        examples = [example for one in whole if (example := self._example_of(one)) is not None]
        texts = [example if isinstance(example, str) else json.dumps(example, indent=2) for example in examples]
        return "".join(f"<pre>{escape(text)}</pre>" for text in texts)

    def _example_of(self, media: Mapping[str, Any]) -> Any:
        """Return the first example of a body; None: there is none."""
        if "example" in media:
            return media["example"]
        if examples := media.get("examples"):
            return next(iter(examples.values())).get("value")
        schema = media.get("schema", {})
        schema = self._models[_name(schema)] if _name(schema) else schema
        return schema.get("example", next(iter(schema.get("examples", [])), None))

    def _curl(self, path: str, method: str, operation: Mapping[str, Any]) -> str:
        """Return a command that sends the request."""
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                examples = parameter["schema"].get("examples", [])
                value = str(examples[0]) if examples else f"<{parameter['name']}>"
                path = path.replace(f"{{{parameter['name']}}}", value)
        words = ["curl", "-N"] if path.endswith("/tail") else ["curl"] if method == "GET" else ["curl", "-X", method]
        words.append(shlex.quote(f"{self._base}{path}") if "<" not in path else f"{self._base}{path}")
        if content := operation.get("requestBody", {}).get("content", {}):
            kind, media = next(iter(content.items()))
            body = json.dumps(self._example_of(media) or {})
            words += ["-H", shlex.quote(f"content-type: {kind}"), "-d", shlex.quote(body)]
        return " ".join(words)

    def _model(self, name: str, model: Mapping[str, Any]) -> Iterator[str]:
        yield f"<details id='schema-{escape(name)}'><summary><code>{escape(name)}</code> "
        yield f"{escape(model.get('description', '').partition(chr(10))[0])}</summary><table>"
        for member, schema in model.get("properties", {}).items():
            facts = [self._type(schema)] + (["required"] if member in model.get("required", []) else [])
            text = escape(schema.get("description", ""))
            yield f"<tr><td><code>{escape(member)}</code><td>{', '.join(facts)}<td>{text}"
        yield "</table></details>"

    def _type(self, schema: Mapping[str, Any]) -> str:
        if name := _name(schema):
            return self._link({"schema": schema}).strip()
        if parts := schema.get("anyOf") or schema.get("oneOf"):
            return " or ".join(map(self._type, parts))
        if "enum" in schema:
            return " or ".join(escape(json.dumps(one)) for one in schema["enum"])
        name = escape(str(schema.get("type", "any")))
        return f"array of {self._type(schema['items'])}" if "items" in schema else name


def _name(schema: Mapping[str, Any]) -> str:
    """Return the name of the schema that this one refers to; empty: it does not."""
    reference: str = schema.get("$ref", "")
    return reference.rpartition("/")[2]


def _parts(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemas that this one is a choice of; the schema itself when it is none."""
    return schema.get("anyOf") or schema.get("oneOf") or [schema]


def _parameter(parameter: Mapping[str, Any]) -> str:
    default = parameter["schema"].get("default")
    facts = [parameter["in"]]
    facts += ["required"] if parameter.get("required") else []
    facts += [f"default {json.dumps(default)}"] if default is not None else []
    text = parameter.get("description", "")
    return f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(', '.join(facts))}<td>{escape(text)}"
