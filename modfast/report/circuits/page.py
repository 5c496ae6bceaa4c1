"""The page of a circuits report: its frame and its style sheet, which need nothing from elsewhere."""

from __future__ import annotations

import re

from modfast.report.svg.markup import Content, Markup, element, join

# Nothing may be loaded and nothing run, whatever a name in the data would like.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, contents: list[tuple[str, str, Content]], opening: Content) -> str:
    """The whole file.

    Args:
        title: in the browser's title bar and above it all.
        contents: identifier, heading and content of each section.
        opening: before them.
    """
    links = [element("a", heading, href=f"#{identifier}") for identifier, heading, _ in contents]
    sections = [
        element("section", element("h2", heading), content, id=identifier)
        for identifier, heading, content in contents
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    header = element("header", element("h1", title), opening)
    navigation = element("nav", links, aria_label="Contents")
    body = element("body", header, navigation, element("main", sections))
    # A number stays on one line with its unit, its sign or its name.
    body = Markup(re.sub(r"(?<=\d) (?=%)|(?<=±) |(?<=d_z) ", "\N{NO-BREAK SPACE}", body))
    return "<!DOCTYPE html>\n" + join(element("html", head, "\n", body, lang="en")) + "\n"


# Okabe and Ito's colours, as in the pictures of runs; the clusters begin with those that plain and modular
# leave.
_STYLE = """
:root {
  --paper: #ffffff; --panel: #f6f8fa; --ink: #1b1f24; --quiet: #57606a; --rule: #d5dbe1;
  --plain: #0072b2; --modular: #d55e00; --link: #005a8d;
  --yes: #00694d; --no: #a33f00; --open: #57606a;
  --c0: #009e73; --c1: #c05f95; --c2: #2b8cc9; --c3: #c27c00; --c4: #0072b2; --c5: #d55e00;
  --crossing: #8b949e; --empty: #e1e5ea;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1e2329; --ink: #e6e9ec; --quiet: #a3adb8; --rule: #3a424b;
    --plain: #56b4e9; --modular: #f0a04b; --link: #7cc4f0;
    --yes: #5fd3b0; --no: #ff9e5c; --open: #b6bfc9;
    --c0: #1fc796; --c1: #e29cc4; --c2: #67bdf0; --c3: #f0b23a; --c4: #4a90d9; --c5: #f07b3a;
    --crossing: #78828d; --empty: #2b3138;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 2.5rem 0 0.75rem; padding-top: 0.75rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1.08rem; margin: 1.75rem 0 0.5rem; }
h2, h3 { break-after: avoid; }
p, ul, dl { max-width: 46rem; margin: 0.5rem 0; }
a { color: var(--link); }
code, pre { font: 0.95em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); padding: 0.75rem; border-radius: 6px; white-space: pre-wrap; }
.quiet, figcaption, nav { color: var(--quiet); font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; margin: 1rem 0; }
nav a { padding: 0.2rem 0; }

.claims { list-style: none; padding: 0; max-width: none; display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.claims li { border: 1px solid var(--rule); border-left-width: 5px; border-radius: 6px; break-inside: avoid;
  padding: 0.6rem 0.9rem; }
.claims p { margin: 0.2rem 0; }
.claims .statement { font-weight: 600; }
.verdict { font-weight: 700; }
.claims .supported { border-left-color: var(--yes); } .supported .verdict { color: var(--yes); }
.claims .contradicted { border-left-color: var(--no); } .contradicted .verdict { color: var(--no); }
.claims .undecided { border-left-color: var(--open); } .undecided .verdict { color: var(--open); }

table { border-collapse: collapse; width: 100%; margin: 0.5rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); font-size: 0.9rem; padding-bottom: 0.4rem; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
thead th { font-size: 0.9rem; }
tbody th { font-weight: 400; }
th small { color: var(--quiet); }
.number { text-align: right; white-space: nowrap; } .number small { display: block; color: var(--quiet); }
tr { break-inside: avoid; }
.group th { font-weight: 700; padding-top: 0.9rem; }
.facts th { width: 30%; min-width: 8rem; color: var(--quiet); }

figure { margin: 1rem 0 1.5rem; break-inside: avoid; }
figcaption.title { color: var(--ink); font-size: 1rem; margin: 0 0 0.4rem; }
figcaption { max-width: 46rem; margin-top: 0.4rem; }
.side { display: grid; gap: 0.75rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.side > div { max-width: 33rem; min-width: 0; }
.kind { font-weight: 600; margin: 0; }
.key { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; list-style: none; padding: 0; font-size: 0.9rem; }
.key svg { width: 1.5em; height: 1em; vertical-align: -0.1em; margin-right: 0.4em; }
.kind svg { width: 1em; height: 1em; vertical-align: -0.1em; margin-right: 0.4em; }
details { margin: 0.75rem 0; } summary { cursor: pointer; color: var(--link); padding: 0.3rem 0; }
dt { font-weight: 600; margin-top: 0.6rem; } dd { margin: 0 0 0 1rem; }

svg { display: block; width: 100%; height: auto; }
svg, .claims li { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.key svg, .kind svg { display: inline-block; }
svg text { fill: var(--ink); font-size: 11px; }
svg .tick { fill: var(--quiet); font-size: 10px; }
.grid { stroke: var(--rule); fill: none; } .rule { stroke: var(--quiet); fill: none; }
circle.plain { fill: var(--plain); } rect.modular { fill: var(--modular); }
.whisker { fill: none; stroke-width: 1.5; } .whisker.plain, .seed.plain { stroke: var(--plain); }
.whisker.modular, .seed.modular { stroke: var(--modular); }
.seed { fill: var(--paper); stroke-width: 1; }
.heat text { font-size: 10px; } .heat .tick { font-size: 9.5px; }
.cell { shape-rendering: crispEdges; }
.heat .on-dark { fill: #ffffff; } .heat .on-light { fill: #111111; }
.empty { fill: var(--empty); } .mark { fill: var(--ink); stroke: var(--paper); stroke-width: 0.5; }
.framed { fill: none; stroke: #d55e00; }
.line { fill: none; stroke-opacity: 0.75; } .line.crossing { stroke-opacity: 0.4; }
.dense.line { stroke-opacity: 0.6; } .dense.line.crossing { stroke-opacity: 0.2; }
.key .line { stroke-opacity: 1; stroke-width: 4; }
.node { fill: none; stroke-width: 3.4; stroke-linecap: round; } .node.few { stroke-width: 7; }
.node.unused { stroke: var(--rule); stroke-width: 2.2; } .node.few.unused { stroke-width: 5; }
.w0 { stroke-width: 0.55; } .w1 { stroke-width: 0.9; } .w2 { stroke-width: 1.3; }
.w3 { stroke-width: 1.8; } .w4 { stroke-width: 2.5; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.crossing { stroke: var(--crossing); }
svg .name { font-weight: 700; font-size: 12px; stroke: none; }
svg .name.c0 { fill: var(--c0); } svg .name.c1 { fill: var(--c1); } svg .name.c2 { fill: var(--c2); }
svg .name.c3 { fill: var(--c3); } svg .name.c4 { fill: var(--c4); } svg .name.c5 { fill: var(--c5); }
svg .found { font-weight: 700; }

@media (max-width: 40rem) {
  h1 { font-size: 1.4rem; } h2 { font-size: 1.2rem; }
  /* Four columns do not fit: the measure above, its numbers below it. */
  .measures, .measures tbody, .measures thead { display: block; }
  .measures tr { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr));
    border-bottom: 1px solid var(--rule); }
  .measures th, .measures td { border: 0; padding: 0.2rem 0.3rem; }
  .measures tr > :first-child { grid-column: 1 / -1; padding-top: 0.4rem; }
  .measures thead tr > :first-child { display: none; }
  .measures .number { text-align: left; white-space: normal; overflow-wrap: normal; font-size: 0.9rem; }
}
@page { size: A4; margin: 16mm 14mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .side { grid-template-columns: repeat(auto-fit, minmax(40%, 1fr)); }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
