"""`/ui`: the dashboard. Its files are in `static/dashboard`; what it shows and does are requests to other routes.

The page holds no data, so it needs no token: it asks for one, and sends it with its requests.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from .problems import Problem

_PAGE = "/ui"
_MEDIA_TYPES = {"dashboard.js": "text/javascript", "dashboard.css": "text/css"}
#: They need no token. A project's router may have other paths below these.
PATHS = frozenset({_PAGE, *(f"{_PAGE}/{name}" for name in _MEDIA_TYPES)})
router = APIRouter(prefix=_PAGE, include_in_schema=False)
_FILES = Path(__file__).parent / "static" / "dashboard"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@router.get("")
async def dashboard() -> FileResponse:
    """Send the page. Its links are relative, so it works under any root path."""
    return FileResponse(_FILES / "dashboard.html", headers=_HEADERS, media_type="text/html")


@router.get("/{name}")
async def dashboard_file(name: str) -> FileResponse:
    """Send the page's script or style sheet."""
    if name not in _MEDIA_TYPES:
        raise Problem("not-found")
    return FileResponse(_FILES / name, media_type=_MEDIA_TYPES[name])
