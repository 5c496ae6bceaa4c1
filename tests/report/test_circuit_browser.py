"""The report on circuits in a browser, if there is one."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from browser import find_browser
from circuit_report_helpers import write_run
from test_circuit_report import RUNS

from modfast.report.circuits.report import write_circuit_report

_FRAME = '<iframe title="{name}" width="360" height="800" style="border: 0" srcdoc="{page}"></iframe>'
_PROBE = """
<!DOCTYPE html><meta charset="utf-8"><title>probe</title>
FRAMES
<pre id="found"></pre>
<script>
function examine(frame) {
  const view = frame.contentWindow, page = view.document;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const name = each => each.tagName + "." + each.getAttribute("class");
  const beyond = [...page.querySelectorAll("*")].filter(
    each => each.getBoundingClientRect().right > view.innerWidth + 0.5).map(name);
  const cut = [...page.querySelectorAll("svg text")].filter(each => {
    const box = each.getBoundingClientRect(), whole = each.ownerSVGElement.getBoundingClientRect();
    return box.left < whole.left - 1 || box.right > whole.right + 1 || box.bottom > whole.bottom + 1;
  }).map(each => each.textContent);
  return {
    title: frame.title, width: view.innerWidth, scroll: page.documentElement.scrollWidth, beyond, cut,
    loaded: view.performance.getEntriesByType("resource").map(each => each.name),
    sections: page.querySelectorAll("section").length,
  };
}
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(examine);
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.mark.slow
def test_in_a_browser(tmp_path: Path) -> None:
    """On a phone's width nothing reaches beyond the page or its picture, and nothing is loaded.

    Alone: ``apt-get install chromium``, then ``pytest tests/report/test_circuit_browser.py``. For a look:
    ``chromium --headless --screenshot=page.png --window-size=1280,14000 circuits.html`` and, in print,
    ``chromium --headless --print-to-pdf=page.pdf circuits.html``.
    """
    browser = find_browser()
    frames = []
    for name, settings in RUNS.items():
        write_run(tmp_path / name, **settings)
        page = write_circuit_report(tmp_path / name).read_text(encoding="utf-8")
        frames.append(_FRAME.format(name=name, page=html.escape(page)))
    # Within a page of our own they are as wide as a phone: a browser's window cannot be as narrow.
    probe = tmp_path / "probe.html"
    probe.write_text(_PROBE.replace("FRAMES", "\n".join(frames)), encoding="utf-8")
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(html.unescape(re.findall(r'<pre id="found">(.*?)</pre>', finished.stdout)[0]))
    assert [each["title"] for each in found] == list(RUNS)
    for each in found:
        assert each["sections"] >= 7
        told = {key: each[key] for key in ("width", "scroll", "beyond", "cut", "loaded")}
        assert told == {"width": 360, "scroll": 360, "beyond": [], "cut": [], "loaded": []}, each["title"]
