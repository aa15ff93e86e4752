"""A comparison as one self-contained HTML page: the figures, and side by side the answers that flipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Template

from .compare import TaskComparison

PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>{{ first }} and {{ second }}</title><style>
body{font:15px/1.5 system-ui;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.25rem .9rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}
details{margin:.8rem 0;border:1px solid #ddd;border-radius:6px;padding:.4rem .9rem}summary{cursor:pointer}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f7f7f7;padding:.7rem;margin:.3rem 0;max-height:30rem;
overflow:auto}.right{background:#e9f7ec}.wrong{background:#fdeeee}
</style><h1>{{ first }} and {{ second }}</h1>
<table><tr><th>task<th>scorer<th>problems<th>{{ first }}<th>{{ second }}<th>difference<th>95 % interval
<th>only {{ first }}<th>only {{ second }}<th>McNemar p</tr>
{% for task in tasks %}
<tr><td>{{ task.task }}<td>{{ task.scorer }}<td>{{ "{:,}".format(task.num_problems) }}
<td>{{ "{:.1%}".format(task.solved[0]) }}<td>{{ "{:.1%}".format(task.solved[1]) }}
<td>{{ "{:+.1%}".format(task.difference.mean) }}
<td>{{ "{:+.1%} to {:+.1%}".format(task.difference.low, task.difference.high) }}
<td>{{ task.only_first }}<td>{{ task.only_second }}
<td>{{ "" if task.p_value is none else "{:.3g}".format(task.p_value) }}</tr>
{% endfor %}</table>
{% for task in tasks %}
<h2>{{ task.task }}: {{ task.flips | length }} of {{ task.num_problems }} flipped</h2>
{% for flip in task.flips %}
<details><summary>{{ first if flip.solved[0] > flip.solved[1] else second }} &nbsp; {{ flip.question[:160] }}</summary>
<pre>{{ shown(flip.question) }}</pre><p>right: <code>{{ shown(flip.ground_truth) }}</code> ({{ flip.where }})</p>
<div class=pair>
{% for share in flip.solved %}
<div><b>{{ (first, second)[loop.index0] }}: {{ "{:.0%}".format(share) }} right</b>
<pre class={{ "right" if share > 0 else "wrong" }}>{{ shown(flip.generations[loop.index0]) }}</pre></div>
{% endfor %}
</div></details>
{% endfor %}
{% endfor %}
</html>
"""
LONGEST = 20_000
"""Characters of a text that the page shows."""


def comparison_page(labels: tuple[str, str], comparisons: Sequence[TaskComparison]) -> str:
    """The page of two models, by what to call them, and the tasks that they have in common."""
    page = Template(PAGE, autoescape=True, trim_blocks=True)
    return page.render(first=labels[0], second=labels[1], tasks=comparisons, shown=shown)


def shown(value: Any) -> str:
    """A text, or another value as JSON, cut where it is very long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
