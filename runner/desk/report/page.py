"""Runs as HTML: a page is a header and a list of sections, each rendered from a template beside this file."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner.config import wording
from runner.page.pieces import Section

# Templates lie beside this file, and those of a technique in its own room, named from here.
TEMPLATES = (Path(__file__).parent, Path(__file__).parents[2])


def render(template: str, sections: Iterable[Section], **shared: Any) -> str:
    """A page: `template` extends page.html.jinja; `shared` is what its header and every section may refer to."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("seconds", "size", "share", "decibel", "digits", "count", "points"):
        environment.filters[name] = getattr(wording, name)
    environment.filters["link"] = quote
    parts = [
        Markup(environment.get_template(section.template).render(**shared, **section.values)) for section in sections
    ]
    videos = any("<video" in part for part in parts)
    return environment.get_template(template).render(**shared, sections=parts, videos=videos)


def write_page(page: Path, html: str) -> Path:
    """Put a page where it belongs, whole or not at all."""
    draft = page.with_name(f".{page.name}.{os.getpid()}.part")
    try:
        draft.write_text(html, encoding="utf-8")
        draft.replace(page)
    finally:
        draft.unlink(missing_ok=True)
    return page
