"""The main job, small: every file appears, numbers agree with each other, a second call changes nothing."""
import json

import numpy as np
import pytest
import torch

from bafe_nb import bafenet, ledger, reproduce, scores
from bafe_nb.boxes import InputError

SMALL = reproduce.Plan(scenes_train=16, scenes_test=6, examples=64, threshold_images=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("main") / "job"
    return out, reproduce.reproduce(out=out, plan=SMALL, progress=False)


def test_every_file_is_there(made):
    out, rows = made
    for name in ("plan.json", "ledger.csv", "tables/scores.csv", "tables/scores.md", "tables/scores.tex", "run/weights.safetensors", "run/losses.csv",
                 "figures/gallery.png", "figures/found_missed_false.png", "figures/precision_recall.png", "figures/losses.png",
                 "detections/top-hat.json", "detections/bafe-small.json", "detections/untrained.json"):
        assert (out / name).stat().st_size > 0, name


def test_ledger_table_and_detections_agree(made):
    out, rows = made
    stored = ledger.read(out / "ledger.csv")
    assert [r["kind"] for r in stored] == ["train"] + ["evaluate"] * 6
    test = reproduce.sources(None, SMALL)[1]
    for row in stored[1:]:
        found = scores.read_detections(out / "detections" / f"{row['method']}.json", test.names)
        again = scores.evaluate(found, test, row["protocol"], row["threshold"])
        assert again["map12"] == pytest.approx(row["map12"], abs=1e-6) and again["f1"] == pytest.approx(row["f1"], abs=1e-6)
        assert {"commit", "device", "torch", "seed", "command", "date", "threads"} <= set(row)
    table = (out / "tables/scores.csv").read_text()
    assert f"{stored[3]['map12']:.3f}" in table and table.count("top-hat") == 2


def test_second_call_changes_no_number(made):
    out, rows = made
    weights = bafenet.load_weights(out / "run/weights.safetensors").state_dict()
    again = reproduce.reproduce(out=out, plan=SMALL, progress=False)
    assert [r.get("map12") for r in again] == [r.get("map12") for r in rows]
    after = bafenet.load_weights(out / "run/weights.safetensors").state_dict()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_other_plan_and_strange_folder_are_refused(made, tmp_path):
    out, _ = made
    with pytest.raises(InputError, match="another plan"):
        reproduce.reproduce(out=out, plan=reproduce.Plan(scenes_train=17, scenes_test=6, examples=64), progress=False)
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"): reproduce.reproduce(out=tmp_path, plan=SMALL, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt"]


def test_threshold_lies_between_hits_and_false_alarms():
    test = reproduce.sources(None, SMALL)[1]
    found = {s.name: np.r_[np.c_[s.boxes, np.full(len(s.boxes), 0.7)], [[0, 0, 3, 3, 0.1]]].astype(np.float32) for s in reproduce.Kept(test, 4).samples}
    assert reproduce.best_threshold(found, reproduce.Kept(test, 4)) == pytest.approx(0.4)


def test_real_images(data, tmp_path):
    plan = reproduce.Plan(examples=32, threshold_images=4)
    rows = reproduce.reproduce(data, tmp_path / "job", plan, progress=False)
    assert rows[0]["data"].startswith("DenseSIRST") and {r["split"] for r in rows} == {"test_v2"}
    assert all(r["recall_real"] is not None for r in rows[1:])
    assert json.loads((tmp_path / "job/plan.json").read_text())["data"] == "DenseSIRST"
