"""The service behind a proxy that serves it under a path."""

from typing import Any

import pytest

from api.root_path import link, path_below, with_root_path


def scope_of(path: str) -> dict[str, Any]:
    return {"type": "http", "path": path, "raw_path": path.encode(), "root_path": ""}


@pytest.mark.parametrize("path", ["/v1/x", "/events/v1/x"])
@pytest.mark.parametrize(("headers", "configured"), [({}, "/events"), ({b"x-forwarded-prefix": b"/events/"}, "")])
def test_a_proxy_may_remove_the_path_or_not(path: str, headers: dict[bytes, bytes], configured: str) -> None:
    found = with_root_path(scope_of(path), headers, configured)
    assert (found["path"], found["raw_path"], found["root_path"]) == ("/events/v1/x", b"/events/v1/x", "/events")
    assert path_below(found) == "/v1/x"
    assert link("/docs") == "/events/docs"
    # The next request on the connection may come from elsewhere.
    assert with_root_path(scope_of(path), {}, "") == scope_of(path)
    assert link("/docs") == "/docs"


@pytest.mark.parametrize("prefix", [b"", b"/", b"//evil.example", b"https://evil.example", b"/a b", b"/a\r\nx", b"a"])
def test_a_prefix_that_is_no_path_is_ignored(prefix: bytes) -> None:
    assert with_root_path(scope_of("/x"), {b"x-forwarded-prefix": prefix}, "") == scope_of("/x")
    assert link("/x") == "/x"
