"""Figures: verdicts by hand, files that are small and repeatable."""
import numpy as np
import pytest
from matplotlib import pyplot as plt

from bafe_nb import figures, scenes, scores


def test_verdict_by_hand():
    sample = next(scenes.scene(k) for k in range(50) if len(scenes.scene(k).boxes) >= 3)
    exact = np.c_[sample.boxes, np.full(len(sample.boxes), 0.9)].astype(np.float32)
    hits, missed, false = figures.verdict(sample, exact, 0.5)
    assert len(hits) == len(sample.boxes) and not len(missed) and not len(false)
    hits, missed, false = figures.verdict(sample, exact[2:], 0.5)
    assert np.array_equal(missed, sample.boxes[:2]) and len(hits) == len(sample.boxes) - 2
    hits, missed, false = figures.verdict(sample, exact, 0.95)
    assert not len(hits) and len(missed) == len(sample.boxes)
    twice = np.r_[exact[:1], exact[:1]]
    assert len(figures.verdict(sample, twice, 0.5)[2]) == 1


def test_verdict_on_an_image_without_targets():
    sample = next(scenes.scene(k) for k in range(200) if not len(scenes.scene(k).boxes))
    hits, missed, false = figures.verdict(sample, np.float32([[1, 1, 4, 4, 0.9]]), 0.5)
    assert (len(hits), len(missed), len(false)) == (0, 0, 1)


def test_saved_files_are_small_and_the_same_twice(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900), dtype=np.uint8)
    first = None
    for folder in ("a", "b"):
        fig, ax = plt.subplots(figsize=(7, 7)); ax.imshow(noise, cmap="gray")
        png, svg = figures.save(fig, tmp_path / folder, "noise", most=400_000)
        assert png.stat().st_size <= 400_000
        first = first or (png.read_bytes(), svg.read_bytes())
    assert first == (png.read_bytes(), svg.read_bytes())


def test_window_holds_the_densest_cluster():
    sample = next(scenes.scene(k) for k in range(50) if len(scenes.scene(k).boxes) >= 3)
    x1, y1, x2, y2 = figures.window(sample, 64)
    assert x2 - x1 == y2 - y1 == 64 and x1 >= 0 and y1 >= 0 and x2 <= 256 and y2 <= 256
    centres = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
    assert ((centres >= (x1, y1)) & (centres < (x2, y2))).all(axis=1).sum() >= 2


def test_legend_carries_the_score_of_the_table():
    samples = [scenes.scene(k) for k in range(8)]
    found = [np.c_[s.boxes, np.linspace(1, 0.5, len(s.boxes))][1:] for s in samples]
    curve = scores.voc_ap(found, [s.boxes for s in samples], points=None, legacy=False)
    fig = figures.precision_recall(dict(truth=curve))
    assert f"mAP12 {curve.ap:.3f}" in fig.axes[0].get_legend().get_texts()[0].get_text()


def test_losses_are_read_by_column(tmp_path):
    (tmp_path / "losses.csv").write_text("step,epoch,lr,box,total\n0,0,0.1,2.0,3.0\n1,0,0.1,1.0,2.0\n")
    columns = figures.read_losses(tmp_path / "losses.csv")
    assert list(columns["box"]) == [2.0, 1.0] and "epoch" not in columns
    assert [line.get_label() for line in figures.losses(columns).axes[0].lines] == ["box", "total"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")
