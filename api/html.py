"""The frame of all HTML pages: one style, no script, nothing from the network."""

from html import escape

from fastapi.responses import HTMLResponse

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886 }
h3, h4 { margin: 1rem 0 .25rem; font-size: 1rem }
details { margin: .3rem 0 } summary { cursor: pointer }
code, pre { font: .875rem/1.5 ui-monospace, monospace }
pre { background: #8881; padding: .5rem .75rem; overflow-x: auto }
b.method { display: inline-block; min-width: 4rem; margin-right: .25rem; white-space: nowrap }
table { border-collapse: collapse } td { padding: .1rem 1rem .1rem 0; vertical-align: top }
@media (max-width: 40rem) {
  td { display: block; padding: 0 } td:first-child { margin-top: .5rem } td:not(:first-child) { padding-left: 1rem }
}
"""
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def page(title: str, *lines: str) -> HTMLResponse:
    """Return a page with these lines of HTML under its title."""
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    )
    return HTMLResponse("\n".join([head, *lines, "</html>\n"]), headers=_HEADERS)
