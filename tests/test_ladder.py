"""The ladder: one change a rung, labels that do what the rung says, rows that are not measured twice."""
import dataclasses

import numpy as np
import pytest

from bafe_nb import bafenet, boxes, examples, ladder, ledger
from bafe_nb.ladder import RUNGS, Rung


def test_each_rung_changes_one_thing():
    fields = [f.name for f in dataclasses.fields(Rung) if f.name != "name"]
    changed = [[f for f in fields if getattr(a, f) != getattr(b, f)] for a, b in zip(RUNGS, RUNGS[1:])]
    assert changed == [["consistent"], ["boxes", "consistent"], ["stride"], ["stride"], ["assign"], ["size"]]


@pytest.mark.parametrize("rung", RUNGS, ids=lambda r: r.name)
def test_every_rung_is_the_same_network_but_for_its_grid(rung):
    parameters, _, _ = bafenet.count(ladder.preset_of(rung), 64)
    assert 155_000 < parameters < 170_000 and ladder.preset_of(rung).head.strides == (rung.stride,)
    schedule = ladder.schedule_of(rung)
    same = dataclasses.replace(schedule, squeeze=None, boxes="corrected", consistent=False)
    assert same == dataclasses.replace(ladder.schedule_of(RUNGS[0]), squeeze=None, boxes="corrected", consistent=False)


def test_labels_under_flips(data):
    """Labels against the target's extent: minus one flips its sign at random in the first rung, never in the second, is gone in the third."""
    from bafe_nb.densesirst import DenseSIRST
    real = DenseSIRST(data, "trainval_v2"); seen = {}
    for rung in RUNGS[:3]:
        schedule = dataclasses.replace(ladder.schedule_of(rung), squeeze=None)
        given, exact = examples.Examples(real, schedule, 0), examples.Examples(real, dataclasses.replace(schedule, boxes="corrected"), 0)
        moved = set()
        for k in range(12):
            a, b = given[(0, k)].boxes, exact[(0, k)].boxes
            if len(a) == len(b): moved |= {tuple(m) for m in np.round(a - b).astype(int)[:, :2]} if len(a) else set()
        seen[rung.name] = {m for m in moved if max(map(abs, m)) <= 1}
    assert {(-1, -1), (1, -1)} <= seen["paper setting"] and seen["corrected boxes"] == {(0, 0)}
    assert (1, -1) not in seen["labels consistent under flips"] and (-1, -1) in seen["labels consistent under flips"]


def test_finished_rungs_are_not_run_again(tmp_path):
    path = tmp_path / "ledger.csv"
    assert not ladder.finished(ledger.read(path), RUNGS[0], 0)
    for protocol in ("paper", "corrected"): ledger.append(path, dict(kind="ladder", rung=RUNGS[0].name, seed=0, protocol=protocol, map12=0.5))
    rows = ledger.read(path)
    assert ladder.finished(rows, RUNGS[0], 0) and not ladder.finished(rows, RUNGS[0], 1) and not ladder.finished(rows, RUNGS[1], 0)


def test_minus_one_boxes_flip_to_plus_one():
    box = np.array([[10, 10, 13, 13]], np.float32)
    assert (boxes.flip(boxes.paper(box), width=40) - boxes.flip(box, width=40)).tolist() == [[1, -1, 1, -1]]
