"""Tables are functions of published rows and ledger rows, and those in figures/ are what the committed ledger gives."""
import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bafe_nb import ledger, tables
from bafe_nb.boxes import InputError

ROOT = Path(__file__).parent.parent


def test_published_rows_are_complete():
    detectors = tables.published("detectors")
    assert len(detectors) == 33 and len(tables.published("adascope")) == 21
    assert all(isinstance(row[key], float) for row in detectors for key in ("map07", "recall07", "map12", "recall12"))
    ours = {(row["method"], row["backbone"]): row for row in detectors}
    assert ours["BAFE-Net (Ours)", "ResNet18"]["map07"] == 0.283 and ours["BAFE-Net (Ours)", "ResNet50"]["map07"] == 0.274
    assert ours["FCOS", "ResNet50"]["flops"] == "50.291G" and ours["FCOS", "ResNet50"]["params"] == "32.113M"


def test_missing_numbers_show_as_dashes_and_never_as_zero():
    table = tables.leaderboard([])
    text = tables.markdown(table)
    assert "| SSD | VGG16 | – | 0.211 | 0.421 | 0.178 | – |" in text


def test_leaderboard_holds_every_published_row():
    rows = tables.leaderboard([]).rows
    assert len(rows) == 33 + 21 and len({row["source"] for row in rows}) == 2
    assert [row["map07"] for row in rows[33:]] == sorted(row["map50"] for row in tables.published("adascope"))


def test_csv_has_a_line_a_row():
    for table in tables.build([], [dict(name="toy", parameters=1, multiply_adds=2)]):
        lines = list(csv.reader(io.StringIO(tables.comma_separated(table))))
        assert len(lines) == 1 + len(table.rows) and all(len(line) == len(table.columns) for line in lines), table.name


def test_seeds_are_joined_and_other_splits_left_out():
    rows = [dict(kind="evaluate", preset="x", data="DenseSIRST", split=s, protocol="corrected", seed=k, map07=m, map12=m, recall=m)
            for s, k, m in (("test_v2", 0, 0.5), ("test_v2", 1, 0.7), ("val_v2", 0, 0.1))]
    line, = tables.ours(rows)
    assert line["map07_corrected"] == pytest.approx(0.6) and line["seeds"] == 2 and "map07" not in line


def test_files_of_a_table(tmp_path):
    paths = tables.write(tables.datasets([]), tmp_path)
    assert [p.suffix for p in paths] == [".csv", ".md", ".tex"] and all(p.stat().st_size for p in paths)
    assert len(re.findall(r"\\\\$", paths[2].read_text(), re.M)) == 6


def committed():
    return tables.build(ledger.read(ROOT / "results" / "ledger.csv"), [dict(name="a_b", parameters=1, multiply_adds=2)])


def test_latex_is_balanced_and_escaped():
    for table in committed():
        text = tables.latex(table)
        begun, ended = re.findall(r"\\begin\{(\w+\*?)\}", text), re.findall(r"\\end\{(\w+\*?)\}", text)
        assert begun[0] == ended[-1] and sorted(begun) == sorted(ended) and set(begun[1:]) <= {"tabular", begun[0]} and re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
        assert not re.search(r"(?<!\\)[%#_]|`", text.replace(rf"\label{{tab:{table.name}}}", "")), table.name
        parts = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.S)
        pages = {}                                              # (columns, head) -> rows of all pages that this part takes
        for align, body in parts:
            head, *rows = [line for line in body.splitlines() if line.endswith(r"\\")]
            assert len(rows) <= tables.PART_ROWS and all(len(re.findall(r"(?<!\\)&", line)) == len(align) - 1 for line in (head, *rows)), table.name
            pages.setdefault((align, head), []).extend(rows)
        assert sum(len(align) for align, _ in pages) == len(table.columns) + len(pages) - 1, f"{table.name}: first column before each part, every other once"
        assert all(len(rows) == len(table.rows) for rows in pages.values()), table.name


NASTY = ["100 % & #1_$x ^ ~ {a} \\ end", "`bafe --data a_b --out x,,y`", "[2pt] in front", "* in front", "σ ≥ 3 × 2² → – — ≈ 1", "the paper's <b>"]


def nasty():
    columns = (tables.Column("a", "Head [1] & %"), tables.Column("b", "x_y", "+.3f"), tables.Column("c", "[heading] of two words"))
    return tables.Table("nasty", NASTY[0], columns, tuple(dict(a=text, b=-1.5, c="a word that is longer than a column ever is, " + text) for text in NASTY), NASTY[1])


def test_latex_escapes_what_broke_it():
    assert tables._tex("`bafe --data x`") == r"\texttt{bafe -{}-data x}", "two hyphens must not melt into a dash"
    assert tables._tex("a -- b") == "a -- b" and tables._tex("[x]") == "{}[x]" and tables._tex("*") == "{}*"
    text = tables.latex(nasty())
    assert text.count("$-$1.500") == len(NASTY) and "-1.500" not in text and r"\textbackslash{}" in text and r"\textasciitilde{}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert not any(line.startswith(("[", "*")) for line in rows), "read as an option of the line break before it"


def test_wide_tables_are_laid_out_for_a_page():
    wide = tables.Table("wide", "", tuple(tables.Column(f"c{k}", f"a heading of {k} words", ".3f") for k in range(20)), ({f"c{k}": 0.5 for k in range(20)},))
    assert tables.latex(wide).count(r"\begin{tabular}") > 1 and tables.latex(wide).startswith(r"\begin{table*}")
    tall = tables.latex(tables.Table(wide.name, "", wide.columns, wide.rows * (tables.TALL + 1)))
    assert tall.count(r"\begin{table*}") == tall.count(r"\begin{tabular}") > 1 and tall.count(r"\label") == 1
    text = tables.latex(tables.leaderboard([]))
    sources = {row["source"] for row in tables.leaderboard([]).rows}
    assert all(text.count(source) == 1 for source in sources) and text.count(r"\begin{tabular}") == 1


def test_latex_compiles_and_fits_the_page(tmp_path):
    if not shutil.which("pdflatex") or subprocess.run(["kpsewhich", "booktabs.sty", "geometry.sty"], capture_output=True).returncode: pytest.skip("no pdflatex with booktabs and geometry on this machine")
    bodies = [tables.latex(table) + r"\clearpage" for table in (*committed(), nasty())]
    page = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\usepackage[textwidth=7in,textheight=9.5in,columnsep=.2in]{geometry}"
    (tmp_path / "all.tex").write_text("\n".join([page, r"\begin{document}", *bodies, r"\end{document}"]), encoding="utf-8")
    made = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert made.returncode == 0, made.stdout[-1500:]
    assert not re.search(r"Overfull \\hbox|Float too large|Missing character", made.stdout), re.findall(r".*(?:Overfull|too large|Missing char).*", made.stdout)


def test_a_recount_stands_beside_the_published_row():
    *published, counted = tables.datasets([dict(kind="dataset", images=1, targets=2, mean_area=11.5, mean_contour_area=6.3, date="2026-01-02T")]).rows
    assert published[-1]["dataset"] == "DenseSIRST" and published[-1]["contour"] == 6 and "pixels" not in published[-1]
    assert (counted["dataset"], counted["contour"], counted["pixels"], counted["source"]) == ("DenseSIRST, recounted", 6.3, 11.5, "ledger, 2026-01-02")


def run(**given):
    return dict(kind="ablation", protocol="corrected", preset="toy", seed=0, recall=.9) | given


def test_an_ablation_changes_one_factor():
    rows = [run(paste="none", map12=.5), run(paste="none", exchange="none", map12=.1), run(paste="paper", map12=.6), run(paste="paper", map12=.8, seed=1), run(paste="none", map12=.2, protocol="paper")]
    found = {row["setting"]: row for row in tables.ablation(rows, "bagcp").rows}
    assert found["no pasting"]["map12"] == .5 and found["no pasting"]["seeds"] == 1
    assert found["BAG-CP, the paper's law"]["map12"] == pytest.approx(.7) and found["BAG-CP, the paper's law"]["map12_sd"] == pytest.approx(.1414, abs=1e-4)
    assert found["plain copies"] == dict(setting="plain copies", source="not run")
    with pytest.raises(InputError, match="backbone"): tables.ablation(rows, "backbone")


def test_without_a_sky_branch_nothing_is_exchanged():
    rows = [run(sky=False, exchange="none", map12=.4), run(map12=.6), run(exchange="none", map12=.5)]
    assert [row.get("map12") for row in tables.ablation(rows, "sky").rows] == [.4, .6]
    assert [row.get("map12") for row in tables.ablation(rows, "exchange").rows] == [.5, None, None, None, .6]


def test_ladder_gains_are_differences_between_rungs_that_were_run():
    rows = [dict(kind="ladder", rung=r, protocol="corrected", map07=m, map12=m, recall=m, seed=k) for r, m in (("paper setting", .1), ("corrected boxes", .5), ("stride 4", .7)) for k in (0, 1)]
    table = tables.ladder_rows(rows)
    assert [row["rung"] for row in table] == list(tables.RUNGS)
    assert [row.get("gain") for row in table] == [None, None, None, pytest.approx(.2), None, None, None]
    assert table[1]["source"] == "not run" and table[0]["seeds"] == 2 and table[0]["map12_sd"] == 0


def test_segmentation_in_published_units():
    rows = [dict(kind="evaluate", data="DenseSIRST", split="test_v2", protocol="corrected", preset="x", pd=.9, fa=1e-5, pd_mask=.95, fa_mask=2e-6, pixel_iou=.7, sky_iou=.8)]
    table = tables.segmentation(rows).rows
    assert [row["method"] for row in table] == ["HFMNet", "DFAwareNet", "x", "x"] and table[0]["pd"] == 91.34
    assert (table[2]["pd"], table[2]["fa"], table[2]["iou"], table[2]["sky"]) == pytest.approx((95, 2, 70, 80))
    assert (table[3]["pd"], table[3]["fa"]) == pytest.approx((90, 10)) and "iou" not in table[3]


def test_the_list_says_what_waits_for_a_run():
    listed = {row["name"]: row["waiting"] for row in tables.build([])[-1].rows}
    assert listed["ladder"] == 7 and listed["ablation_bagcp"] == 6 and listed["leaderboard"] == 0


def test_committed_tables_are_what_the_ledger_gives():
    """`bafe tables` writes nothing new: the ledger, the presets and the files in figures/ agree."""
    from bafe_nb import background, bafenet
    counts = [dict(name=n, parameters=c[0], multiply_adds=c[1]) for n in bafenet.PRESETS for c in [bafenet.count(n)]]
    rows = ledger.read(ROOT / "results" / "ledger.csv")
    for table in tables.build(rows, counts, background.comparisons(rows, ROOT / "results")):
        for ending, text in ((".csv", tables.comma_separated(table)), (".md", tables.markdown(table)), (".tex", tables.latex(table))):
            path = ROOT / "figures" / (table.name + ending)
            assert path.exists() and path.read_text(encoding="utf-8") == text, f"{path.name} is not what results/ledger.csv gives: run bafe tables"


def test_differences_stand_beside_their_interval():
    line = dict(what="an idea", against="nothing pasted", measure="alarms_sky", mean=-1.25, low=-2, high=0.5, spread=.1, seeds=3)
    table = tables.differences([line])
    assert [tables.cell(table.rows[0], c) for c in tables.DIFFERENCES] == ["an idea", "nothing pasted", tables.WORDS["alarms_sky"], "-1.250", "-2.000", "+0.500", "0.100", "3"]
    assert "differences" in {t.name for t in tables.build([], compared=[line])} and "differences" not in {t.name for t in tables.build([])}


def test_scarce_runs_are_not_counted_among_the_others():
    rows = [dict(kind="ablation", protocol="corrected", arm="a", sky=True, exchange="learnable", paste="default", share=s, map12=m) for s, m in ((1.0, .8), (0.1, .2))]
    assert [row.get("map12") for row in tables.ablation(rows, "bagcp").rows][-1] == .8


def test_published_sizes():
    assert tables.published_size("fcos-r50") == ("32.113M", "50.291G") and tables.published_size("paper-r18-july") == ("22.31M", "57.654G")
    assert tables.published_size("bafe-hr") == (tables.MISSING, tables.MISSING)


def test_unknown_published_table():
    with pytest.raises(InputError, match="nonsense"): tables.published("nonsense")
