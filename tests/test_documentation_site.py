"""The pages built from the docstrings: complete, readable without a network, every link leads somewhere, formulas are formulas."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import matplotlib.image
import pytest

import hf_focal


ROOT = Path(__file__).parents[1]
FORMULAS = {"losses", "posterior", "alpha", "trainer"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error", ROOT / ".docs/build.py", folder]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    return folder


def pages(site: Path) -> dict[Path, str]:
    return {page: page.read_text("utf-8") for page in sorted(site.rglob("*.html"))}


def test_all_public_names_are_there(site):
    html = (site / "hf_focal.html").read_text("utf-8")
    assert {f'id="{name}"' for name in hf_focal.__all__} <= {*re.findall(r'id="[^"]+"', html)}
    modules = {path.stem for path in (ROOT / "hf_focal").glob("*.py") if path.stem[0] != "_"}
    assert {page.stem for page in (site / "hf_focal").glob("*.html")} == modules


def test_links_lead_somewhere(site):
    found = pages(site)
    anchors = {page: {*re.findall(r'id="([^"]+)"', html)} for page, html in found.items()}
    for page, html in found.items():
        without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
        for target in map(unescape, re.findall(r'href="([^"]+)"', without_scripts)):
            if target.startswith(("https://", "data:")):
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists() and (not anchor or anchor in anchors[linked]), f"{page}: {target}"
        assert not re.search(r"\[<code>", html), page  # a reference that was not recognised


def test_nothing_is_loaded_from_a_network(site):
    for page, html in pages(site).items():
        assert not re.search(r'(src|<link[^>]*href)="(https?:)?//', html), page


def test_formulas(site):
    for page, html in pages(site).items():
        without_code = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", html, flags=re.DOTALL)
        assert "$" not in without_code, page
        assert ("<math" in html) == (page.stem in FORMULAS | {"hf_focal"}), page


def test_search_knows_the_names(site):
    index = (site / "search.js").read_text("utf-8")
    assert "focal_loss" in index and "FocalTrainer.calibrate" in index


def chromium(*arguments: object, profile: Path) -> str:
    # Without the connections that it makes by itself, which a closed network refuses.
    quiet = "--disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-quic".split()
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={profile}",
        *arguments,
    ]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("name", ["posterior"])  # which has all of them
def test_formulas_on_the_screen(site, tmp_path, name):
    """Ink in each of them, above and below the middle of a fraction, and exponents above their bases."""
    page = site / "hf_focal" / f"{name}.html"
    probe = page.with_name(f"probe_{name}.html")
    measure = """<script>
        const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top + scrollY, r.width, r.height] };
        const boxes = tag => [...document.querySelectorAll(tag)].map(e => [e, ...e.children].map(box));
        document.body.dataset.boxes = JSON.stringify({math: boxes("math"), msup: boxes("msup"), mfrac: boxes("mfrac")});
    </script></body>"""
    probe.write_text(page.read_text("utf-8").replace("</body>", measure), "utf-8")
    dom = chromium(
        "--dump-dom", "--hide-scrollbars", "--window-size=1300,1000", probe.as_uri(), profile=tmp_path / "a"
    )
    probe.unlink()
    boxes = json.loads(unescape(re.search(r'data-boxes="([^"]+)"', dom)[1]))
    picture, height = tmp_path / "page.png", max(top + height for _, top, _, height in sum(boxes["math"], []))
    window = f"--window-size=1300,{height + 100:.0f}"
    chromium(f"--screenshot={picture}", "--hide-scrollbars", window, page.as_uri(), profile=tmp_path / "b")
    pixels = matplotlib.image.imread(picture)[..., :3].mean(-1)

    def has_ink(left, top, width, height):
        region = pixels[round(top) : round(top + height), round(left) : round(left + width)]
        return region.size and region.min() < 0.5

    assert boxes["math"] and all(has_ink(*formula[0]) for formula in boxes["math"])
    assert boxes["msup"] and all(exponent[1] < base[1] for _, base, exponent in boxes["msup"])
    assert all(
        above[1] + above[3] <= below[1] + 1 and has_ink(*above) and has_ink(*below)
        for _, above, below in boxes["mfrac"]
    )
