"""The site: built strictly from what is committed, whole without a network, plumbing hidden, equations readable, every link leading somewhere."""
import csv
import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from bafe_nb.figures import FIGURES

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -c constraints.txt -e '.[docs]'")
pytest.importorskip("mkdocs_jupyter", reason="mkdocs-jupyter is not installed: pip install -c constraints.txt -e '.[docs]'")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Folder of the built site."""
    out = tmp_path_factory.mktemp("site")
    env = dict(os.environ, NO_MKDOCS_2_WARNING="1", JUPYTER_PLATFORM_DIRS="1", PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return out


def page(site, *names):
    """HTML of one page."""
    return site.joinpath(*names, "index.html").read_text(encoding="utf-8")


def test_every_notebook_and_module_has_a_page(site):
    for path in NOTEBOOKS: assert (site / "notebooks" / path.stem / "index.html").exists(), path.stem
    modules = {name for path in NOTEBOOKS for name in re.findall(r"#\| ?default_exp (\w+)", path.read_text(encoding="utf-8"))}
    assert {p.name for p in (site / "api").iterdir() if p.is_dir()} == modules
    assert "Intersection over union" in page(site, "api", "boxes")


def test_results_page_shows_every_table_and_figure(site):
    html = page(site, "results")
    with (ROOT / "figures" / "tables.csv").open(newline="", encoding="utf-8") as file: tables = list(csv.DictReader(file))
    assert html.count("<table") == len(tables) + 1
    for name in FIGURES: assert f"figures/{name}.png" in html and (site / "figures" / f"{name}.png").exists(), name


def test_plumbing_is_hidden_and_the_rest_is_shown(site):
    for path in NOTEBOOKS:
        html = page(site, "notebooks", path.stem)
        assert "#|" not in unescape(re.sub(r"<[^>]+>", "", html)), f"{path.stem}: a directive is shown"
        book = json.loads(path.read_text(encoding="utf-8"))
        shown = [c for c in book["cells"] if c["cell_type"] == "code" and not re.match(r"#\| ?(hide|default_exp)\b", "".join(c["source"]).lstrip())]
        assert html.count("<clipboard-copy ") == len(shown), path.stem
        pictures = sum("image/png" in out.get("data", {}) for cell in shown for out in cell["outputs"])
        assert html.count("data:image/png;base64,") == pictures, path.stem


def test_equations_are_mathml(site):
    for path in NOTEBOOKS:
        html = page(site, "notebooks", path.stem)
        assert not re.search(r"EQUATION\d", html), f"{path.stem}: a token was left"
        text = re.sub(r'<div class="clipboard-copy-txt".*?</div>|<(pre|code|math|style)\b.*?</\1>', "", html, flags=re.S)
        left = re.findall(r"\$[^$<]{1,80}\$|\\(?:frac|sum|sigma|text|left)\b[^<]{0,40}", text)
        assert not left, f"{path.stem}: TeX is shown as text: {left[:3]}"
    assert page(site, "notebooks", "01_boxes").count("<math") >= 20
    assert not any("\\" in math for math in re.findall(r"<math\b.*?</math>", page(site, "notebooks", "09_losses"), re.S))


def test_nothing_is_loaded_from_the_network(site):
    for path in site.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"((?:https?:)?//[^\"]+)", html) + re.findall(r"<link\b[^>]*\bhref=\"(https?://[^\"]+)\"[^>]*rel=\"?stylesheet", html)
        loaded += re.findall(r"<link\b[^>]*rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"((?:https?:)?//[^\"]+)", html)
        assert not loaded, f"{path.relative_to(site)} loads {loaded[:3]}"
    for path in (site / "assets").glob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?https?:", path.read_text(encoding="utf-8")), path.name


def test_every_link_inside_leads_somewhere(site):
    for path in site.rglob("index.html"):
        html = path.read_text(encoding="utf-8")
        for link in set(re.findall(r"\b(?:href|src)=\"([^\"]+)\"", html)):
            link = unescape(link).split("#")[0].split("?")[0]
            if not link or re.match(r"[a-z]+:|//", link): continue
            target = site / link.lstrip("/") if link.startswith("/") else path.parent / link
            assert (target / "index.html").exists() or target.is_file(), f"{path.relative_to(site)} links to {link}"


def test_search_knows_functions_and_prose(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {doc["location"].split("#")[0] for doc in index["docs"]}
    assert {"", "api/bagcp/", "notebooks/05_bagcp/", "results/"} <= places
    assert any("half-open" in doc["text"] for doc in index["docs"])


def test_light_and_dark(site):
    html = page(site)
    assert 'data-md-color-scheme="default"' in html and 'data-md-color-scheme="slate"' in html
