"""`/ui`: the dashboard. Its files are in `static/dashboard`; what it shows and does are requests to other routes.

The page holds no data, so it needs no token: it asks for one, and sends it with its requests.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

_PAGE, _SCRIPT, _STYLE = "/ui", "/ui/dashboard.js", "/ui/dashboard.css"
#: They need no token. A project's router may have other paths below /ui.
PATHS = frozenset({_PAGE, _SCRIPT, _STYLE})
router = APIRouter(include_in_schema=False)
_FILES = Path(__file__).parent / "static" / "dashboard"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


@router.get(_PAGE)
async def dashboard() -> FileResponse:
    """Send the page. Its links are relative, so it works under any root path."""
    return FileResponse(_FILES / "dashboard.html", headers=_HEADERS, media_type="text/html")


@router.get(_SCRIPT)
async def dashboard_script() -> FileResponse:
    """Send the page's script."""
    return FileResponse(_FILES / "dashboard.js", media_type="text/javascript")


@router.get(_STYLE)
async def dashboard_style() -> FileResponse:
    """Send the page's style sheet."""
    return FileResponse(_FILES / "dashboard.css", media_type="text/css")
