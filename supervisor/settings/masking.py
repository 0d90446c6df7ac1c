"""Takes what is secret out of what is shown: passwords in URLs, values of keys that are named after a secret."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

#: Parts of names whose values are nobody's business.
_SECRET_WORDS = ("token", "password", "secret", "api_key")
_IN_QUERY = re.compile(r"[?&]([^=&?]*)=")


def is_secret(name: str) -> bool:
    """Whether a key or parameter of that name holds a secret."""
    return any(word in name.lower() for word in _SECRET_WORDS)


def masked(url: str) -> str:
    """The URL with its passwords as `***`, for logs and status.

    It looks at the text and not at its parts: a password with an unescaped `@`, `/` or `#` makes a URL that
    parses as something else, and must be hidden all the same. So whatever comes before the last `@` counts as
    credentials.
    """
    scheme, mark, rest = _without_query_secrets(url).partition("://")
    user, _, host = rest.rpartition("@")
    if ":" not in user or rest.startswith("/"):  # unix:///path has no credentials in front
        return f"{scheme}{mark}{rest}"
    return f"{scheme}{mark}{user.partition(':')[0]}:***@{host}"


def _without_query_secrets(url: str) -> str:
    shown, at = "", 0
    for found in _IN_QUERY.finditer(url):
        if found.start() >= at and is_secret(unquote_plus(found[1])):
            end = url.find("&", found.end())
            shown, at = f"{shown}{url[at : found.end()]}***", len(url) if end < 0 else end
    return shown + url[at:]
