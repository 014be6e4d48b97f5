"""The HTML template of the page about a pack, which `html_page` fills in."""

import jinja2

STYLE = """\
  :root { color-scheme: light dark; --ink: #222; --soft: #595959; --line: #d8d8d8; --page: #fff; --box: #f5f5f5; }
  @media screen and (prefers-color-scheme: dark) {
    :root { --ink: #e8e8e8; --soft: #adadad; --line: #454545; --page: #161616; --box: #222; }
  }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 64rem;
    margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
  h1 { font-size: 1.5rem; line-height: 1.25; }
  h2 { font-size: 1.15rem; margin: 2.4rem 0 0.6rem; }
  p { max-width: 46rem; }
  .note, figcaption, .soft { color: var(--soft); font-size: 0.9rem; }
  .scroll { overflow: auto; max-height: 34rem; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
  th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: right; border-bottom: 1px solid var(--line);
    overflow-wrap: normal; white-space: nowrap; }
  th { font-weight: 600; }
  thead th { border-bottom: 2px solid var(--soft); background: var(--page); position: sticky; top: 0; }
  .text { text-align: left; }
  .long { white-space: normal; min-width: 10rem; max-width: 24rem; overflow-wrap: anywhere; }
  tfoot td, tfoot th { border-bottom: 0; border-top: 2px solid var(--line); }
  .heat td { padding: 0.35rem 0.6rem; text-align: center; border: 1px solid var(--page);
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .swatch { width: 0.85em; height: 0.85em; vertical-align: -0.06em; margin-right: 0.3em; }
  .legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; margin: 0.6rem 0; list-style: none;
    font-size: 0.9rem; }
  .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1.4rem; }
  .small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
  figure { margin: 0; break-inside: avoid; }
  img { display: block; image-rendering: pixelated; border: 1px solid var(--line); width: 100%; }
  .map { height: 18rem; } .strip { height: 1.3rem; margin: 0.15rem 0; } .rows { height: 24rem; }
  .thin { height: 0.8rem; width: 12rem; display: inline-block; vertical-align: middle; }
  .bars { width: 100%; height: 5rem; display: block; border-bottom: 1px solid var(--soft); }
  .ends { display: flex; justify-content: space-between; font-size: 0.8rem; color: var(--soft); }
  .layer { margin: 0.9rem 0; break-inside: avoid; }
  pre { background: var(--box); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.88rem; overflow-wrap: normal; }
  dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0 1.2rem; font-size: 0.92rem; }
  dt { color: var(--soft); } dd { margin: 0; }
  @media print { body { max-width: none; margin: 0; } h2 { break-after: avoid; }
    .scroll { max-height: none; overflow: visible; } pre { white-space: pre-wrap; } }
"""

MACROS = """\
{% macro swatch(colour) %}
<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">
<rect width="10" height="10" fill="{{ colour }}" stroke="#808080"/></svg>
{%- endmacro %}
{% macro legend() %}
<ul class="legend">
  <li>{{ swatch(colours[0]) }}free</li>
{% if tasks | length <= max_swatches %}
{% for task in tasks %}
  <li>{{ swatch(colours[task.number]) }}{{ task.number }}: {{ task.name }}</li>
{% endfor %}
{% else %}
  <li>task 1 <img class="thin" src="{{ scale }}" alt="from dark to bright"> task {{ tasks | length }}</li>
{% endif %}
</ul>
{% endmacro %}
{% macro ends() %}
<div class="ends" aria-hidden="true"><span>-{{ largest }}</span><span>0</span><span>{{ largest }}</span></div>
{% endmacro %}
{% macro scroll(label) %}
<div class="scroll" role="region" tabindex="0" aria-label="{{ label }}">
{{ caller() }}</div>
{% endmacro %}
"""

TASKS = """\
{% if tasks %}
<h2>Tasks</h2>
{% call scroll("Tasks") %}
<table>
<thead><tr><th scope="col">task</th><th scope="col" class="text">name</th><th scope="col" class="text">classes</th>
<th scope="col">weights</th><th scope="col">share</th>
{% if "when_learned" in known %}<th scope="col">accuracy when learned</th>{% endif %}
{% if "accuracy" in known %}<th scope="col">final accuracy</th>{% endif %}
{% if "bytes" in known %}<th scope="col">bytes</th>{% endif %}</tr></thead>
<tbody>
{% for task in tasks %}
<tr><th scope="row">{{ swatch(colours[task.number]) }}{{ task.number }}</th><td class="text long">{{ task.name }}</td>
<td class="text long">{{ task.classes() }}</td><td>{{ "{:,}".format(task.weights) }}</td>
<td>{{ "{:.2%}".format(task.share) }}</td>
{% if "when_learned" in known %}<td>{{ score(task.when_learned) }}</td>{% endif %}
{% if "accuracy" in known %}<td>{{ score(task.accuracy) }}</td>{% endif %}
{% if "bytes" in known %}<td>{{ "{:,}".format(task.bytes) if task.bytes is not none }}</td>{% endif %}</tr>
{% endfor %}
</tbody>
</table>
{% endcall %}
{% endif %}
{% if inspection.accuracy %}
<h2>Accuracy on each task after each task</h2>
<p class="note">Test accuracy that the run recorded after learning the task of the row, measured on the task of the
column. A column with equal values is a task that was not forgotten.</p>
{% if matrix %}
{% call scroll("Accuracy") %}
<table class="heat">
<thead><tr><th scope="col">after</th>
{% for row in matrix %}<th scope="col">on {{ loop.index }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in matrix %}
<tr><th scope="row">task {{ loop.index }}</th>
{%- for cell in row %}<td style="background:{{ cell.colour }};color:{{ cell.ink }}">{{ cell.text }}</td>{% endfor %}
{% for _ in matrix[row | length:] %}<td></td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endcall %}
{% else %}
<figure><img class="rows" src="{{ matrix_picture }}" alt="Accuracy after each task (down) on each (across)">
<figcaption>Rows are the tasks learned so far, columns are the tasks measured. Dark is {{ lowest }}, bright is
{{ highest }}. The table of tasks has the final numbers.</figcaption></figure>
{% endif %}
{% endif %}
"""

LAYERS = """\
<h2>Free capacity</h2>
<p>{{ "{:,}".format(inspection.free) }} of {{ "{:,}".format(inspection.weights) }} weights are free
({{ "{:.1%}".format(inspection.free / inspection.weights) }}).
{{ inspection.room or no_rate }}</p>
<h2>Weights by layer and task</h2>
{{ legend() }}
{% for layer in strips %}
<div class="layer">{{ layer.path }}
<span class="soft">{{ layer.shape }}, {{ layer.free }} free</span>
<img class="strip" src="{{ layer.whole }}" alt="{{ layer.alt }}">
{% if layer.owned %}
<span class="soft">owned part, enlarged</span>
<img class="strip" src="{{ layer.owned }}" alt="Owned part of {{ layer.path }}, enlarged">
{% endif %}
</div>
{% endfor %}
{% call scroll("Weights by layer and task") %}
<table>
<thead><tr><th scope="col" class="text">kernel</th><th scope="col">weights</th>
{% for index in shown %}<th scope="col">task {{ index + 1 }}</th>{% endfor %}
<th scope="col">free</th><th scope="col">free share</th></tr></thead>
<tbody>
{% for layer in inspection.layers %}
<tr><th scope="row" class="text long">{{ layer.path }}</th><td>{{ "{:,}".format(layer.weights) }}</td>
{% for index in shown %}<td>{{ "{:,}".format(layer.owned[index]) }}</td>{% endfor %}
<td>{{ "{:,}".format(layer.free) }}</td><td>{{ "{:.1%}".format(layer.free / layer.weights) }}</td></tr>
{% endfor %}
</tbody>
<tfoot><tr><th scope="row" class="text">all</th><td>{{ "{:,}".format(inspection.weights) }}</td>
{% for index in shown %}<td>{{ "{:,}".format(tasks[index].weights) }}</td>{% endfor %}
<td>{{ "{:,}".format(inspection.free) }}</td><td>{{ "{:.1%}".format(inspection.free / inspection.weights) }}</td></tr>
</tfoot>
</table>
{% endcall %}
{% if shown | length < tasks | length %}
<p class="note">Only the first and the last tasks are shown; --format=json prints all of them.</p>
{% endif %}
"""

PICTURES = """\
<h2>Owner maps</h2>
<p class="note">Rows are inputs (or kernel positions and channels), columns are outputs. A cell of several weights has
the colour of the task that owns most of them.
{% if not_drawn %}{{ not_drawn }} smaller kernels are not drawn.{% endif %}</p>
{{ legend() }}
<div class="cards">
{% for map in maps %}
<figure><img class="map" src="{{ map.picture }}" alt="Owner map of {{ map.alt }}">
<figcaption>{{ map.path }}: {{ map.caption }}</figcaption></figure>
{% endfor %}
</div>
{% if tasks %}
<h2>Distribution of the weights of each task</h2>
<p class="note">Histograms of the weights that each task owns, over all layers, from -{{ largest }} to {{ largest }}.
Each histogram is scaled to its own height.</p>
{% if histograms %}
<div class="cards small">
{% for each in histograms %}
<figure><svg class="bars" viewBox="0 0 {{ bins }} 100" preserveAspectRatio="none" role="img"
aria-label="{{ each.alt }}"><path d="{{ each.path }}" fill="{{ each.colour }}"/></svg>
{{ ends() }}
<figcaption>{{ each.caption }}</figcaption></figure>
{% endfor %}
</div>
{% else %}
<figure><img class="rows" src="{{ histogram_picture }}"
alt="Histograms of the weights of each task, one row per task">
{{ ends() }}
<figcaption>Task 1 is at the top, task {{ tasks | length }} at the bottom. Bright cells hold most weights of a
task.</figcaption></figure>
{% endif %}
{% endif %}
{% if filters %}
<h2>Filters of the first layer</h2>
<figure style="max-width: {{ filters.width }}px"><img src="{{ filters.picture }}" alt="{{ filters.alt }}">
<figcaption>{{ filters.caption }}</figcaption></figure>
{% endif %}
"""

PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
"""
    + STYLE
    + """\
</style>
</head>
<body>
<main>
"""
    + MACROS
    + """\
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
{% for note in inspection.notes %}
<p class="note">Note: {{ note }}.</p>
{% endfor %}
"""
    + TASKS
    + LAYERS
    + PICTURES
    + """\
<h2>Next step</h2>
<p>{{ advice }}</p>
<pre tabindex="0">{{ code }}</pre>
<h2>The pack</h2>
<dl>
{% for name, value in about.items() %}
  <dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
</main>
</body>
</html>
"""
)
