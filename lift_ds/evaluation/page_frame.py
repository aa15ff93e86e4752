"""The frame of every HTML page that is written: one head and one set of styles, for screens light and dark, and paper.

A page is a template that fills the block `body`:

    {% extends "frame.html" %}{% block body %}<h1>{{ title }}</h1>{% endblock %}

It holds all that it shows: nothing is fetched when it is opened. Every value is escaped.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

GENERATOR = '<meta name="generator" content="lift_ds">'  # by which a page of ours is known
ENVIRONMENT = Environment(
    loader=PackageLoader("lift_ds", "assets/pages"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def render(template: str, title: str, **values: Any) -> str:
    """The page of a template, which is a text, or the name of a file in `assets/pages`."""
    is_name = template.endswith(".html")
    made = ENVIRONMENT.get_template(template) if is_name else ENVIRONMENT.from_string(template)
    return made.render(title=title, **values)
