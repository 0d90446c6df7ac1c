"""`/docs`: one page about all routes, made from the OpenAPI description, without script and without network.

FastAPI's own page loads its script from a server on the internet and stays blank without one. It is at
`/docs/interactive`.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)
#: FastAPI's own page.
INTERACTIVE = "/docs/interactive"
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886 }
details { margin: .3rem 0 } summary { cursor: pointer }
code, pre { font: .875rem/1.5 ui-monospace, monospace }
pre { background: #8881; padding: .5rem .75rem; overflow-x: auto }
b.method { display: inline-block; width: 3.5rem }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0; vertical-align: top }
"""


@router.get("/")
async def root() -> RedirectResponse:
    """Redirect to the page of all routes."""
    return RedirectResponse("/docs")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Show all routes."""
    return HTMLResponse(page(request.app.openapi(), str(request.base_url).rstrip("/")), headers=_HEADERS)


def page(schema: Mapping[str, Any], base: str) -> str:
    """Render the description as HTML; `base` is the service's address, for the examples."""
    info = schema["info"]
    lines = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>",
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>",
        "<p><a href='/openapi.json'>/openapi.json</a> describes the routes for programs;"
        f" <a href='{INTERACTIVE}'>{INTERACTIVE}</a> sends requests from the browser, and loads its script"
        " from the internet.</p>",
    ]
    for tag in schema.get("tags", []):
        lines.append(f"<h2>{escape(tag['name'])}</h2><p>{escape(tag.get('description', ''))}</p>")
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation.get("tags", []):
                    curl = _curl(path, method.upper(), operation, base, schema)
                    lines += _operation(path, method.upper(), operation, curl)
    return "\n".join([*lines, "</html>\n"])


def _operation(path: str, method: str, operation: Mapping[str, Any], curl: str) -> Iterator[str]:
    yield f"<details><summary><b class=method>{method}</b> <code>{escape(path)}</code>"
    yield f" {escape(operation.get('summary', ''))}</summary>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    parameters = operation.get("parameters", [])
    if parameters:
        rows = "".join(map(_parameter, parameters))
        yield f"<table>{rows}</table>"
    yield f"<pre>{escape(curl)}</pre>"
    answers = ((code, answer.get("description", "")) for code, answer in sorted(operation["responses"].items()))
    yield "<table>" + "".join(f"<tr><td>{code}<td>{escape(text)}" for code, text in answers) + "</table></details>"


def _parameter(parameter: Mapping[str, Any]) -> str:
    default = parameter["schema"].get("default")
    facts = [parameter["in"]]
    facts += ["required"] if parameter.get("required") else []
    facts += [f"default {json.dumps(default)}"] if default is not None else []
    text = parameter.get("description", "")
    return f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(', '.join(facts))}<td>{escape(text)}"


def _curl(path: str, method: str, operation: Mapping[str, Any], base: str, schema: Mapping[str, Any]) -> str:
    """Return a command that sends the request."""
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            examples = parameter["schema"].get("examples", [])
            path = path.replace(f"{{{parameter['name']}}}", str(examples[0]) if examples else f"<{parameter['name']}>")
    words = ["curl", "-N"] if path.endswith("/tail") else ["curl"] if method == "GET" else ["curl", "-X", method]
    words.append(shlex.quote(f"{base}{path}") if "<" not in path else f"{base}{path}")
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        kind, media = next(iter(content.items()))
        words += ["-H", shlex.quote(f"content-type: {kind}"), "-d", shlex.quote(json.dumps(_example(media, schema)))]
    return " ".join(words)


def _example(media: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Return the first example of a body."""
    if reference := media.get("schema", {}).get("$ref"):
        media = {"example": {}, **schema["components"]["schemas"][reference.rpartition("/")[2]]}
    if "example" in media:
        return media["example"]
    examples = media.get("examples") or {}
    if examples:
        return next(iter(examples.values())).get("value")
    return next(iter(media.get("schema", {}).get("examples", [])), {})
