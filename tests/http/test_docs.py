"""The page about all routes: there without network, whole, and safe to open."""

import re
import shlex
import subprocess
from html import unescape
from html.parser import HTMLParser

import httpx

from tests.http.service import Service


class Page(HTMLParser):
    """The page's text and addresses, and what is not well-formed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids |= {value or "" for name, value in attrs if name == "id"}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_root_leads_to_the_page(http: httpx.Client) -> None:
    answer = http.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


def test_the_page_needs_nothing_from_elsewhere_and_lists_all_routes(http: httpx.Client) -> None:
    answer = http.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = Page(answer.text)
    assert page.links[:3] == ["/openapi.json", "/docs/interactive", "/ui"] and "script" not in page.tags
    addresses = {link for link in page.links if not link.startswith("#")}
    assert "/problems/redis-unavailable" in addresses
    assert all(http.get(link).status_code == 200 for link in addresses)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    described = http.get("/openapi.json").json()["paths"]
    listed = set(re.findall(r"^(GET|POST|PUT|DELETE) (/\S+)", page.text, re.MULTILINE))
    assert listed == {(method.upper(), path) for path, operations in described.items() for method in operations}
    assert len(listed) > 15 and not any(path.startswith("/docs") for _, path in listed)


def test_each_route_shows_its_answers_and_errors(http: httpx.Client) -> None:
    shown = Page(http.get("/docs").text).text
    for text in (
        "Idempotency-Replayed", "application/x-ndjson", '"accepted_at"', "text/event-stream", "StoredBatch",
        "The key is not a stream",
    ):  # fmt: skip
        assert text in shown, text


def test_the_interactive_page_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    answer = http.get("/docs/interactive")
    page = Page(answer.text)
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert len(page.links) == 4 and all(link.startswith(("/docs/files/", "data:")) for link in page.links)
    types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
    for link in page.links:
        if link.startswith("/"):
            file = http.get(link)
            assert (file.status_code, file.headers["content-type"]) == (200, types[link.rpartition(".")[2]])
            assert "wagger" in file.text
    assert http.get("/docs/files/LICENSE").status_code == 404


def test_its_commands_work(service: Service, http: httpx.Client) -> None:
    commands = [unescape(text) for text in re.findall(r"<pre>(curl.*?)</pre>", http.get("/docs").text)]
    assert len(commands) > 15
    for words in ("-X POST", "/readyz", "/v1/streams/events:user_created/messages "):
        assert any(words in f"{command} " for command in commands), words
    publish = next(command for command in commands if "-X POST" in command and "/messages " in command)
    assert service.base_url in publish
    done = subprocess.run(
        [*shlex.split(publish), "-s", "-w", " %{http_code}", "--noproxy", "*"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith(" 202"), done.stdout
