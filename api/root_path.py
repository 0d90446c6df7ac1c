"""The path under which a proxy serves the service: set as `[api] root_path`, or sent by the proxy with each request.

A proxy may remove it from the address or not; both are understood. It is a prefix of all addresses in answers. It can't
lead to another host, so it may come from anybody.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar

from starlette.types import Scope

_HEADER = b"x-forwarded-prefix"
_PREFIX = re.compile(rb"((?:/[A-Za-z0-9._~-]+){1,8})/?")
_current: ContextVar[str] = ContextVar("root_path", default="")


def with_root_path(scope: Scope, headers: Mapping[bytes, bytes], configured: str) -> Scope:
    """Return the scope with the root path in its `root_path` and its path, and remember it for `link`."""
    root = configured
    if not root and _HEADER in headers and (sent := _PREFIX.fullmatch(headers[_HEADER])):
        root = sent[1].decode()
    if root != _current.get():  # the context may be that of the connection's last request
        _current.set(root)
    if not root:
        return scope
    path, raw_path = scope["path"], scope.get("raw_path", b"")
    if path != root and not path.startswith(f"{root}/"):
        path, raw_path = root + path, root.encode() + raw_path
    return {**scope, "root_path": root, "path": path, "raw_path": raw_path}


def path_below(scope: Scope) -> str:
    """Return the path without the root path."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def link(path: str) -> str:
    """Return the address of a path of this service, for an answer to the request that is handled now."""
    return _current.get() + path
