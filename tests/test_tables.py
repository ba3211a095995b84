"""Tables are functions of published rows and ledger rows."""
import csv
import io

import pytest

from bafe_nb import tables
from bafe_nb.boxes import InputError


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


def test_csv_has_a_line_a_row():
    table = tables.leaderboard([])
    lines = list(csv.reader(io.StringIO(tables.comma_separated(table))))
    assert len(lines) == 1 + len(table.rows) and all(len(line) == len(table.columns) for line in lines)


def test_seeds_are_joined_and_other_splits_left_out():
    rows = [dict(kind="evaluate", preset="x", data="DenseSIRST", split=s, protocol="corrected", seed=k, map07=m, map12=m, recall=m)
            for s, k, m in (("test_v2", 0, 0.5), ("test_v2", 1, 0.7), ("val_v2", 0, 0.1))]
    line, = tables.ours(rows)
    assert line["map07_corrected"] == pytest.approx(0.6) and line["seeds"] == 2 and "map07" not in line


def test_files_of_a_table(tmp_path):
    paths = tables.write(tables.datasets([]), tmp_path)
    assert [p.suffix for p in paths] == [".csv", ".md", ".tex"] and all(p.stat().st_size for p in paths)
    assert paths[2].read_text().count(r"\\") == 6


def test_unknown_published_table():
    with pytest.raises(InputError, match="nonsense"): tables.published("nonsense")
