"""The ledger: nothing lost, nothing rounded."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bafe_nb import ledger
from bafe_nb.boxes import InputError


def test_rows_come_back_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    rows = [dict(kind="evaluate", preset="a, \"quoted\"", seed=k, map12=float(rng.random()), sky_iou=None, ok=True) for k in range(20)]
    for row in rows: ledger.append(tmp_path / "ledger.csv", row)
    back = ledger.read(tmp_path / "ledger.csv")
    assert back == [{k: v for k, v in row.items() if v is not None} for row in rows]


def test_a_commit_of_digits_stays_text(tmp_path):
    row = dict(commit="0123456", tag="12e4567", name="1.50", seed=7, share=0.1, count="")
    ledger.append(tmp_path / "l.csv", row)
    ledger.append(tmp_path / "l.csv", dict(commit="1234567"))
    assert ledger.read(tmp_path / "l.csv") == [{k: v for k, v in row.items() if v != ""}, dict(commit="1234567")]
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "l.csv").read_bytes())      # a spreadsheet's mark
    assert ledger.read(tmp_path / "l.csv")[1] == dict(commit="1234567")


def test_new_columns_keep_old_rows(tmp_path):
    path = tmp_path / "deep" / "ledger.csv"
    ledger.append(path, dict(kind="train", seed=0))
    ledger.append(path, dict(kind="bench", milliseconds=1.5))
    assert ledger.read(path) == [dict(kind="train", seed=0), dict(kind="bench", milliseconds=1.5)]


def test_processes_do_not_lose_rows(tmp_path):
    path = tmp_path / "ledger.csv"
    code = "import sys; from bafe_nb import ledger\nfor k in range(5): ledger.append(sys.argv[1], dict(writer=int(sys.argv[2]), k=k))"
    runs = [subprocess.Popen([sys.executable, "-c", code, str(path), str(w)], cwd=Path(__file__).parent.parent) for w in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert sorted((row["writer"], row["k"]) for row in ledger.read(path)) == [(w, k) for w in range(3) for k in range(5)]


def test_damaged_ledger_is_refused_by_line(tmp_path):
    path = tmp_path / "ledger.csv"
    path.write_text("kind,seed\ntrain,0\ntrain,1,2\n")
    with pytest.raises(InputError, match="row 3"): ledger.read(path)
    with pytest.raises(InputError): ledger.append(path, dict(kind="train"))
    assert path.read_text() == "kind,seed\ntrain,0\ntrain,1,2\n"


def test_summary_by_hand():
    rows = [dict(p="a", x=1.0), dict(p="a", x=2.0), dict(p="a", x=6.0), dict(p="b")]
    a, b = ledger.summarise(rows, ("p",), ("x",))
    assert a == dict(p="a", seeds=3, x=3.0, x_sd=pytest.approx(7 ** 0.5)) and b == dict(p="b", seeds=1, x=None, x_sd=None)


def test_a_repository_around_the_package_is_not_its_commit(tmp_path):
    """A package that lies in somebody else's checkout, as in a virtual environment inside a project."""
    git = lambda *words: subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *words], check=True, capture_output=True)
    git("init"); (tmp_path / "own.py").write_text(""); git("add", "own.py"); git("commit", "-m", "own")
    package = Path(ledger.__file__).parent; shutil.copytree(package, tmp_path / "site" / "bafe_nb", ignore=shutil.ignore_patterns("__pycache__"))
    told = subprocess.run([sys.executable, "-c", "from bafe_nb import ledger; print(ledger.__file__, ledger.commit())"], cwd=tmp_path / "site", env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True)
    assert told.stdout.split() == [str(tmp_path / "site" / "bafe_nb" / "ledger.py"), "unknown"], told


def test_stamp_names_commit_and_device():
    mark = ledger.stamp("bafe x")
    assert mark["command"] == "bafe x" and len(mark["commit"].rstrip("+")) >= 7 and mark["device"]
