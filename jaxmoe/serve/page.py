"""The page: one file that asks nothing of any other server."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from jaxmoe.serve.engine import Engine

FOLDER = Path(__file__).parent


def render(engine: Engine, *, needs_key: bool, max_bytes: int) -> tuple[str, str]:
    """The HTML, and the Content-Security-Policy under which nothing runs but its own script."""
    facts = {
        "model": engine.name,
        "needs_key": needs_key,
        "max_bytes": max_bytes,
        "translate_to": engine.args.translate_to,
        "speakers": [] if needs_key else engine.speakers(),  # names of people: with a key, /v1/models has them
    }
    style, script = ((FOLDER / name).read_text("utf-8") for name in ("page.css", "page.js"))
    pages = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
    deepl = engine.translator is not None and engine.args.mt == "deepl"
    parts = {"style": style, "script": script, "facts": facts, "deepl": deepl}
    html = pages.get_template("page.html").render(facts | parts)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; "
        "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
