"""Figures: verdicts by hand, files that are small and repeatable."""
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from bafe_nb import bagcp, figures, ledger, scenes, scores

ROOT = Path(__file__).parent.parent


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


def noise_figure():
    noise = np.random.default_rng(0).integers(0, 255, (400, 400), dtype=np.uint8)
    fig, ax = plt.subplots(figsize=(3, 3)); ax.imshow(noise, cmap="gray")
    return fig


@pytest.mark.parametrize("layout", [False, True])
def test_saved_files_are_small_and_the_same_twice(tmp_path, layout):
    first = None
    for folder in ("a", "b"):
        with plt.rc_context({"figure.constrained_layout.use": layout}): fig = noise_figure()
        png, svg = figures.save(fig, tmp_path / folder, "noise", most=100_000)
        assert png.stat().st_size <= 100_000
        first = first or (png.read_bytes(), svg.read_bytes())
    assert first == (png.read_bytes(), svg.read_bytes())


def test_a_figure_that_cannot_be_small_is_refused(tmp_path):
    with pytest.raises(ValueError, match="noise.png: .* bytes .* at most 9,000"): figures.save(noise_figure(), tmp_path, "noise", most=9_000)
    assert not list(tmp_path.iterdir())


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


def test_brightness_rank_counts_brighter_pixels_outside_targets():
    sample = next(scenes.scene(k) for k in range(50) if len(scenes.scene(k).boxes) >= 3)
    for rank, (x1, y1, x2, y2) in zip(figures.brightness_rank(sample), sample.boxes.astype(int)):
        assert rank == (sample.image[~sample.targets] > sample.image[y1:y2, x1:x2].max()).sum()


def test_histograms_count_every_target_once(data):
    from bafe_nb.densesirst import DenseSIRST
    images = DenseSIRST(data, "test_v2", cache=False)
    samples = [images[i] for i in range(min(8, len(images)))]
    rows = figures.histograms(samples)
    for name in figures.BINS:
        for kind in ("real", "pasted"):
            count = sum(row["targets"] for row in rows if row["statistic"] == name and row["kind"] == kind)
            assert count == sum(int((s.real == (kind == "real")).sum()) for s in samples), (name, kind)


def test_committed_histograms_hold_the_whole_dataset():
    rows = ledger.read(ROOT / "results" / "target_histograms.csv")
    for name, edges in figures.BINS.items():
        mine = [row for row in rows if row["statistic"] == name]
        assert [row["left"] for row in mine if row["kind"] == "real"] == [float(e) for e in edges[:-1]]
        assert sum(row["targets"] for row in mine if row["kind"] == "real") == 648 and sum(row["targets"] for row in mine) == 13655


@pytest.mark.parametrize("preset", ("paper-r18", "bafe-hr", "bafe-small"))
def test_the_diagram_says_what_the_preset_says(preset):
    from bafe_nb import bafenet
    ax, head = figures.architecture(preset).axes[0], bafenet.PRESETS[preset].head
    words = " ".join(text.get_text() for text in ax.texts).replace("\n", " ")
    assert f"{bafenet.count(preset)[0]:,}" in ax.get_title() and f"{head.exchange} exchange" in words and f"{head.channels} channels" in words
    assert ("large-kernel" in words) == (preset == "paper-r18")


def test_the_weight_in_the_pipeline_is_turned_by_whole_degrees():
    """The same draws through notebook 05's function, which takes degrees."""
    sample = next(s for s in map(scenes.scene, range(20)) if len(s.boxes) > 4)
    pixels, weight, _ = figures._stamp_of("paper", sample, 3)
    rng = np.random.default_rng(3); sx, sy = rng.uniform(.3, .6, 2); mx, my = -rng.uniform(0, .2, 2)
    assert any(np.allclose(weight, bagcp.gaussian(*weight.shape, sx, sy, mx, my, angle)) for angle in range(-90, 90)) and not np.allclose(weight, bagcp.gaussian(*weight.shape, sx, sy, mx, my, 0))


def test_exchanged_slots_are_half_and_shared_where_the_exchange_shares_them():
    for kind in ("static", "dynamic", "learnable"):
        at_sky, at_target = figures._slots(kind)
        assert len(at_sky) == len(at_target) == 4 and (kind == "dynamic" or at_sky == at_target)


def test_time_joins_a_training_with_its_own_evaluation():
    rows = [dict(kind="train", data="DenseSIRST", preset="x", seed=k, seconds=100 + k) for k in (0, 1)]
    rows += [dict(kind="evaluate", data="DenseSIRST", split="test_v2", protocol=p, preset="x", seed=k, map07=.5 + k / 10) for k in (0, 1) for p in ("paper", "corrected")]
    rows += [dict(kind="evaluate", data="scenes", split="test", protocol="corrected", preset="x", seed=0, map07=.9)]
    rows += [dict(kind="train", data="DenseSIRST", preset="x, tuned", seed=1, seconds=10), dict(kind="evaluate", data="DenseSIRST", split="test_v2", protocol="corrected", preset="x, tuned", seed=1, map07=.7)]
    assert figures.timed(rows) == [("x", 100, .5), ("x", 101, .6), ("x, tuned", 111, .7)]


def test_costs_in_one_unit():
    points = {(name, kind): (g, m) for name, kind, _, g, m in figures.cost_points([])}
    assert points["FCOS ResNet50", "published"] == (50.291, 32.113) and 759 in {g for g, _ in points.values()}, "0.759T is 759 G"


def test_a_preset_that_changed_since_its_training_is_not_drawn():
    from bafe_nb import bafenet
    row = dict(kind="evaluate", split="test_v2", data="DenseSIRST", preset="bafe-small", protocol="paper", map07=.6, map12=.6, recall=.6)
    for parameters, drawn in ((bafenet.count("bafe-small")[0], 1), (17, 0)):
        rows = [row, dict(kind="train", preset="bafe-small", parameters=parameters)]
        assert sum(point[1] == "this suite" for point in figures.cost_points(rows)) == drawn


def test_a_line_of_masks_is_the_mean_over_seeds_in_order_of_levels():
    row = lambda seed, p, pd, **more: dict(kind="masks", data="DenseSIRST", split="test_v2", preset="x", seed=seed, threshold=p, pd_mask=pd, fa_mask=1e-6 * seed, pixel_iou=.5) | more
    rows = [row(1, .9, .6), row(1, .5, .8), row(3, .5, .9), row(3, .9, .7), row(5, .5, .1, split="val_v2"), row(5, .5, .1, kind="evaluate")]
    (name, line), = figures.mask_lines(rows).items()
    assert name == "x" and np.allclose(line, [(.5, .85, 2e-6, .5), (.9, .65, 2e-6, .5)])
    left, right = figures.masks_by_level(rows).axes
    assert np.allclose(left.lines[0].get_xydata(), [(2, 85), (2, 65)]) and np.allclose(right.lines[0].get_ydata(), 50)
    assert np.allclose(left.lines[1].get_xydata(), [(8.52, 91.34)]) and np.allclose(right.lines[2].get_ydata(), 69.78)


def test_what_has_no_source_is_said_and_not_drawn(tmp_path):
    drawn = {path.stem for path in figures.build(tmp_path / "results", tmp_path / "figures")}
    assert drawn == {"architecture", "architecture_hr", "exchange", "standings", "cost_against_score"}
    text = (tmp_path / "figures" / "figures.md").read_text()
    for name in set(figures.FIGURES) - drawn: assert f"*{name}: not drawn, since " in text
    for name in drawn: assert f"]({name}.png)" in text and (tmp_path / "figures" / f"{name}.svg").exists()


def test_committed_figures_are_there_and_small():
    for name in figures.FIGURES:
        png = ROOT / "figures" / f"{name}.png"
        assert png.exists() and png.with_suffix(".svg").exists(), f"{name} is not in figures/: run bafe figures"
        assert png.stat().st_size <= 500_000
        width = plt.imread(png).shape[1]
        assert width % 34 == 0 or width % 70 == 0, f"{name} is {width} pixels wide: neither one column nor the page"
