"""Hook of mkdocs: makes the pages that the repository already holds in another form, and keeps the site free of the network.

- nbs/*.ipynb become pages in reading order: cells that begin with `#| hide` left out, directive lines dropped, equations written as MathML;
- one API page a module, from its docstrings; the front page from README.md; CONTRIBUTING.md, CHANGELOG.md, and figures/ with every table.
"""
import csv
import json
import re
import shutil
import tempfile
from configparser import ConfigParser
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PARTS = (("What is seen", "00 01 02 03"), ("What is scored and pasted", "04 05"), ("The network", "06 07 08 09 10"), ("Training and judging", "10b 10c 11 12 13 14 15 19"),
         ("What it shows", "20 23 18 21 22"), ("To run and to play", "24 25 26 30 40"))
equations, styles, scripts = {}, {}, {}
scratch = None


def settings():
    """settings.ini as a mapping."""
    found = ConfigParser(delimiters=["="])
    found.read(ROOT / "settings.ini", encoding="utf-8")
    return found["DEFAULT"]


def notebooks():
    """Paths of the numbered notebooks, in the order of PARTS, and what PARTS does not name behind them."""
    order = [number for _, numbers in PARTS for number in numbers.split()]
    known = {number: k for k, number in enumerate(order)}
    return sorted((ROOT / "nbs").glob("[0-9]*.ipynb"), key=lambda path: (known.get(number_of(path.stem), len(order)), path.stem))


def number_of(stem):
    """The number by which PARTS names a notebook: its own, such as 10b, or that of the notebook it follows, 09 for 09b."""
    own = stem.split("_")[0]
    return own if any(own in numbers.split() for _, numbers in PARTS) else own[:2]


def answers():
    """Paths of the notebooks with worked answers to the exercises."""
    return sorted((ROOT / "nbs" / "answers").glob("*.ipynb"))


def title(book):
    """The text of the first heading of a notebook (dictionary)."""
    return next(line[2:].strip() for cell in book["cells"] if cell["cell_type"] == "markdown" for line in "".join(cell["source"]).splitlines() if line.startswith("# "))


# ---- equations ----

def as_token(match):
    """Put an equation aside as MathML; what stands in the text until the page is made is a token that Markdown leaves alone."""
    display, inline = match.group(1), match.group(2)
    tex = re.sub(r"\\[bB]igg?[lrm]?(?![a-z])", "", (display or inline).strip())   # fences stretch by themselves
    token = f"EQUATION{len(equations):05d}X"
    equations[token] = re.sub(r"<mo[^>]*>(&#x0007C;|&#x02016;)</mo>", r'<mo stretchy="false" lspace="0.05em" rspace="0.05em">\1</mo>', convert(tex, display="block" if display else "inline"))
    return f"\n\n{token}\n\n" if display else token


def set_equations_aside(text):
    """Markdown with tokens for $...$ and $$...$$, outside code."""
    pieces = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.S)
    for k in range(0, len(pieces), 2):
        pieces[k] = re.sub(r"\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$]+?)(?<!\s)\$(?!\d)", as_token, pieces[k], flags=re.S)
    return "".join(pieces)


def put_equations_back(text):
    """The text with MathML where tokens stood."""
    return re.sub(r"EQUATION\d{5}X", lambda match: equations[match.group()], text)


# ---- notebooks ----

def links_of(path, source):
    """One line under the title: the notebook itself, on Colab, and the API page of the module that it exports."""
    cfg = settings()
    found = re.search(r"#\| ?default_exp (\w+)", source)
    place = f"blob/{cfg['branch']}/{path.relative_to(ROOT).as_posix()}"
    words = [f"[notebook]({cfg['git_url']}/{place})", f"[open in Colab](https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/{place})"]
    if found: words.append(f"[bafe_nb.{found.group(1)}](../../api/{found.group(1)}/)")
    return " · ".join(words)


def shown(cell):
    """A cell as the reader sees it, or None: hidden cells and bare directives go, directive lines too."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown": return dict(cell, source=set_equations_aside(source))
    if cell["cell_type"] != "code" or re.match(r"\s*#\| ?hide\b", source): return None
    source = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
    if not source.strip(): return None
    outputs = [dict(out, data=dict(out["data"], **{"text/markdown": set_equations_aside("".join(out["data"]["text/markdown"]))}))
               if "text/markdown" in out.get("data", {}) else out for out in cell["outputs"]]
    return dict(cell, source=source, outputs=outputs, execution_count=None)


def for_readers(path):
    """A notebook (dictionary) without plumbing, links under its title."""
    text = path.read_text(encoding="utf-8")
    book = json.loads(text)
    book["cells"] = [cell for cell in map(shown, book["cells"]) if cell]
    first = book["cells"][0]
    head, _, rest = first["source"].partition("\n")
    first["source"] = f"{head}\n\n{links_of(path, text)}\n\n{rest.lstrip()}"
    return book


# ---- the other pages ----

def modules():
    """Names of the exported modules, in the order of their notebooks."""
    return [name for path in notebooks() for name in re.findall(r"#\| ?default_exp (\w+)", path.read_text(encoding="utf-8"))]


def api_page(name):
    """Markdown of the API page of one module; mkdocstrings fills it from the docstrings."""
    book = next(path.stem for path in notebooks() if re.search(rf"#\| ?default_exp {name}\b", path.read_text(encoding="utf-8")))
    return f"# bafe_nb.{name}\n\nExported by notebook [{book}](../notebooks/{book}.ipynb).\n\n::: bafe_nb.{name}\n"


def as_page(text, figures):
    """Markdown of the repository's top level with its links turned towards the site; pictures from the network left out; `figures` gathers what it shows."""
    cfg = settings()
    text = re.sub(r"\[!\[[^\]]*\]\(https?:[^)]*\)\]\(([^)]*)\)", r"[Colab](\1)", text)
    def turn(match):
        target, _, anchor = match.group(1).partition("#")
        anchor = anchor and "#" + anchor
        if not target or re.match(r"[a-z]+:", target): return match.group()
        if re.fullmatch(r"nbs/answers/\w+\.ipynb", target): return f"]({target[4:]}{anchor})"
        if re.fullmatch(r"nbs/[0-9]\w+\.ipynb", target): return f"](notebooks/{Path(target).name}{anchor})"
        if target.startswith("docs/"): return f"]({target[5:]}{anchor})"
        if target.startswith("figures/") and target.endswith((".png", ".svg")): figures.add(target); return f"]({target})"
        pages = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
        return f"]({pages[target]}{anchor})" if target in pages else f"]({cfg['git_url']}/blob/{cfg['branch']}/{target})"
    return re.sub(r"\]\(([^)\s]+)\)", turn, text)


def results_page(figures):
    """Every table and figure of figures/, in the order of their lists (figures/tables.csv and figures/figures.md)."""
    folder = ROOT / "figures"
    with (folder / "tables.csv").open(newline="", encoding="utf-8") as file: names = [row["Files"] for row in csv.DictReader(file)]
    parts = ["# Tables and figures", "Written by `bafe tables` and `bafe figures` from the ledger in `results/`, the published rows in `bafe_nb/tables` and the images; nothing here is drawn or typed by hand.", "## Tables"]
    for name in ("tables", *names):
        heading, _, rest = (folder / f"{name}.md").read_text(encoding="utf-8").partition("\n")
        parts.append(f"### {heading.strip('*')}\n{rest}")
    listed = (folder / "figures.md").read_text(encoding="utf-8").partition("\n")[2]
    return as_page("\n\n".join([*parts, "## Figures", re.sub(r"\]\((\w+\.png)\)", r"](figures/\1)", listed)]) + "\n", figures)


def write(place, text):
    """Write one made page under the scratch folder."""
    path = scratch / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# ---- what mkdocs calls ----

def on_config(config):
    """Make the pages and the way through them."""
    global scratch
    scratch = Path(tempfile.mkdtemp(prefix="bafe-site-"))
    figures = set()
    for path in notebooks() + answers(): write(path.relative_to(ROOT / "nbs").as_posix() if path in answers() else f"notebooks/{path.name}", json.dumps(for_readers(path)))
    for name in modules(): write(f"api/{name}.md", api_page(name))
    for source, place in (("README.md", "index.md"), ("CONTRIBUTING.md", "contributing.md"), ("CHANGELOG.md", "changelog.md")):
        write(place, as_page((ROOT / source).read_text(encoding="utf-8"), figures))
    write("results.md", results_page(figures))
    for figure in figures:
        (scratch / "figures").mkdir(exist_ok=True); shutil.copy(ROOT / figure, scratch / figure)
    config["nav"] = navigation()
    return config


def navigation():
    """Reading order: front page, notebooks by part, tables and figures, API, the rest."""
    left = {path.stem: path for path in notebooks()}
    parts = []
    for heading, numbers in (*PARTS, ("More", None)):
        chosen = [stem for stem in left if numbers is None or number_of(stem) in numbers.split()]
        pages = [{title(json.loads(left.pop(stem).read_text(encoding="utf-8"))).split(":")[0]: f"notebooks/{stem}.ipynb"} for stem in chosen]
        if pages: parts.append({heading: pages})
    if answers(): parts.append({"Answers": [{title(json.loads(path.read_text(encoding="utf-8"))).split(":")[0]: f"answers/{path.name}"} for path in answers()]})
    rest = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    return [{"Start": "index.md"}, *parts, {"Tables and figures": "results.md"}, {"API": [{name: f"api/{name}.md"} for name in modules()]},
            {"The project": ["contributing.md", "changelog.md", *rest]}]


@event_priority(100)
def on_files(files, config):
    """Hand the made pages to mkdocs before any plugin looks at the list."""
    for path in sorted(p for p in scratch.rglob("*") if p.is_file()):
        files.append(File(path.relative_to(scratch).as_posix(), str(scratch), config["site_dir"], config["use_directory_urls"]))
    return files


def on_page_content(html, page, config, files):
    """A notebook's page: scripts of the network go out, its own script and style sheet into shared files, equations come in."""
    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r"<script\b([^>]*)>(.*?)</script>", set_script_aside, html, flags=re.S)
        html = re.sub(r"<style[^>]*>(.*?)</style>", lambda match: styles.setdefault(match.group(1), "") or "", html, flags=re.S)
        html = re.sub(r'href="\.\./([0-9]\w+)\.ipynb"', r'href="../../notebooks/\1/"', html)          # from answers to their notebook
        html = re.sub(r'href="answers/(\w+)\.ipynb"', r'href="../../answers/\1/"', html)                # and back
        for item in walk(page.toc): item.title = re.sub(r"<[^>]+>", "", put_equations_back(item.title))
    return put_equations_back(html)


def set_script_aside(match):
    """Keep the script of the copy button for the shared file; equations and diagrams need none here."""
    if "src=" not in match.group(1) and "clipboard-copy" in match.group(2): scripts.setdefault(match.group(2))
    return ""


def walk(items):
    """Every entry of a table of contents."""
    for item in items:
        yield item
        yield from walk(item.children)


def on_post_build(config):
    """Write the style sheet and the script that the notebook pages share, and take the scratch folder away."""
    assets = Path(config["site_dir"]) / "assets"
    (assets / "notebook.css").write_text("\n".join(styles), encoding="utf-8")
    (assets / "notebook.js").write_text(";\n".join(scripts), encoding="utf-8")
    shutil.rmtree(scratch)
    for kept in (equations, styles, scripts): kept.clear()
