"""Draw docs/pictures/circuits.png: the first three circuits of a report, as a browser shows them.

Run ``modfast reproduce --data digits --circuits --out out/digits``, then ``python docs/pictures/draw.py
out/digits/circuits.html``. It needs Chromium, and Pillow, which comes with matplotlib.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

CLASSES, WIDTH, HEIGHT, SCALE = 3, 1020, 1000, 1.412

# The classes stand beside each other, with the plain network above and the modular one below.
_STYLE = """
<style>
  body { max-width: none; display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 1rem; }
  .key { grid-column: 1 / -1; max-width: none; } figure { margin: 0; }
</style>
"""


def main(report: str) -> None:
    """Write ``circuits.png`` beside this file."""
    page = Path(report).read_text(encoding="utf-8")
    head, body = page.split("<body>")
    drawn = body.split("<h3>What the circuits look like</h3>")[1]
    key = re.findall(r'<ul class="key">.*?</ul>', drawn, flags=re.DOTALL)[0]
    figures = re.findall(r"<figure>.*?</figure>", drawn, flags=re.DOTALL)[:CLASSES]
    picture = Path(__file__).with_name("circuits.png")
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.html"
        part.write_text(f"{head}{_STYLE}<body>{key}{''.join(figures)}</body></html>", encoding="utf-8")
        options = ["--headless", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"]
        subprocess.run(["chromium", *options, f"--screenshot={picture}", part.as_uri()], check=True)
    shot = Image.open(picture).convert("RGB")
    # The empty part of the window below the page is as white as the page.
    _, _, _, bottom = ImageChops.difference(shot, Image.new("RGB", shot.size, "white")).getbbox()
    shot = shot.crop((0, 0, shot.width, bottom + 16))
    shot.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
