"""The frame of every HTML page that is written: one head and one set of styles, for screens light and dark, and paper.

A page is a template that fills the block `body`:

    {% extends "frame.html" %}{% block body %}<h1>{{ title }}</h1>{% endblock %}

It holds all that it shows: nothing is fetched when it is opened. Every value is escaped.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

GENERATOR = '<meta name="generator" content="lift_ds">'  # by which a page of ours is known
SEPARATORS = re.compile(r"[/=](?=\w)|[._](?=[A-Za-z])")
ENVIRONMENT = Environment(
    loader=PackageLoader("lift_ds", "assets/pages"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def breakable(text: str) -> Markup:
    """A text, escaped, that a narrow column may break behind the separators of keys and paths."""
    return Markup(SEPARATORS.sub(r"\g<0><wbr>", str(escape(text))))


ENVIRONMENT.filters["breakable"] = breakable


def render(template: str, title: str, **values: Any) -> str:
    """The page of a template, which is a text, or the name of a file in `assets/pages`."""
    is_name = template.endswith(".html")
    made = ENVIRONMENT.get_template(template) if is_name else ENVIRONMENT.from_string(template)
    return made.render(title=title, **values)
