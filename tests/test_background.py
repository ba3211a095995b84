"""The ablation of notebook 23: what is measured, how sure it is, and a queue that may be interrupted."""
import dataclasses
import fcntl

import numpy as np
import pytest

from bafe_nb import background, bafenet, ledger, scenes, scores
from bafe_nb.boxes import InputError
from bafe_nb.densesirst import DenseSIRST, Sample


class Half(scenes.Scenes):
    """Scenes every second target of which counts as real."""
    def __getitem__(self, i):
        sample = super().__getitem__(i)
        return dataclasses.replace(sample, real=np.arange(len(sample.boxes)) % 2 == 0)


@pytest.fixture(scope="module")
def guesses():
    """Twelve scenes and detections that hit, graze and miss their targets, with equal scores among them."""
    data, rng = Half(12, split="test"), np.random.default_rng(0)
    found = {}
    for i, name in enumerate(data.names):
        boxes = data[i].boxes
        near = boxes + rng.integers(-1, 2, boxes.shape) * (rng.random((len(boxes), 1)) < 0.2)
        far = rng.uniform(0, 240, (15, 2)); far = np.concatenate((far, far + 3), 1)
        both, high = np.concatenate((near, boxes[:2], far)), np.r_[np.full(len(near), 30), np.full(len(boxes[:2]) + len(far), 22)]
        found[name] = np.concatenate((both, rng.integers(high - 18, high)[:, None] / 30), 1).astype(np.float32)
    return data, found


def test_measures_are_those_of_notebook_04(guesses):
    data, found = guesses
    row = scores.evaluate(found, data, "corrected")
    assert background.measure(background.judge(found, data))[:3] == pytest.approx([row[m] for m in background.MEASURES[:3]], abs=1e-12)
    assert 0 < row["map12"] < 1 and 0 < row["recall_real_at_precision_90"] < 1


def test_a_weight_is_a_number_of_copies(guesses):
    data, found = guesses
    rng = np.random.default_rng(1)                    # no equal scores here: their order would decide
    found = {name: np.c_[d[:, :4], rng.permutation(len(d)) / 1000 + d[:, 4] + rng.random() / 1e4].astype(np.float32) for name, d in found.items()}
    judged, weights = background.judge(found, data), np.array([0, 2, 1] * 4)
    samples = [dataclasses.replace(data[i], name=f"{i}-{copy}") for i, w in enumerate(weights) for copy in range(w)]
    copied = background.judge({s.name: found[data.names[int(s.name.split("-")[0])]] for s in samples}, samples)
    a, b = background.measure(judged, weights), background.measure(copied)
    assert np.allclose(a[:2], b[:2], atol=1e-9) and np.allclose(a[2:], b[2:], atol=1e-9)
    assert not np.allclose(a[:2], background.measure(judged)[:2])


def test_false_alarms_by_hand():
    """100 x 100 pixels, upper half sky. Five targets, four found; one alarm in sky above the fourth hit's score, two below ground, one alarm scored too low to count, one grazing hit within 3 px."""
    sky = np.zeros((100, 100), bool); sky[:50] = True
    boxes = np.array([[10 * k, 10, 10 * k + 3, 13] for k in range(1, 6)], np.float32)
    sample = Sample("a", np.zeros((100, 100), np.uint8), boxes, sky, np.zeros((100, 100), bool), np.ones(5, bool))
    hits = np.c_[boxes[:4], [.9, .8, .7, .6]]
    others = np.array([[80, 20, 83, 23, .85], [20, 80, 23, 83, .75], [40, 80, 43, 83, .65], [60, 80, 63, 83, .5], [52, 11, 55, 14, .95]])
    values = background.measure(background.judge({"a": np.concatenate((hits, others))}, [sample]))
    assert values[3:] == pytest.approx([1 / 5000 * 1e6, 2 / 5000 * 1e6])


def test_alarms_are_undefined_where_the_recall_is_not_reached(guesses):
    data, found = guesses
    values = background.measure(background.judge({data.names[0]: found[data.names[0]]}, data))
    assert np.isnan(values[3:]).all() and np.isfinite(values[:3]).all()


def test_draws_are_the_same_for_every_run_and_have_the_size_of_the_split():
    a, b = background.draws(40, 20), background.draws(40, 20)
    assert np.array_equal(a, b) and (a.sum(1) == 40).all() and a.max() > 1


def test_interval_of_a_known_difference():
    rng = np.random.default_rng(1)
    base = {s: (0.5, 0.5 + 0.1 * rng.standard_normal(400)) for s in range(4)}
    moved = {s: (v + d, draw + d) for (s, (v, draw)), d in zip(base.items(), (0.1, 0.2, 0.3, 0.4))}
    found = background.difference(moved, {**base, 9: base[0]})
    assert found.mean == pytest.approx(0.25) and found.seeds == 4 and found.spread == pytest.approx(np.std([.1, .2, .3, .4], ddof=1))
    half = 3.18 * np.std([.1, .2, .3, .4], ddof=1) / 2                          # Student's t with three degrees of freedom, four seeds
    assert (found.low, found.high) == pytest.approx((0.25 - half, 0.25 + half)), "what both runs share cancels, the seeds remain"
    with pytest.raises(InputError, match="none in common"): background.difference({0: base[0]}, {1: base[1]})


def test_an_interval_over_images_alone_is_that_of_the_draws():
    draw = np.random.default_rng(2).standard_normal(100_000)
    found = background.difference({s: (1.0, 1 + draw) for s in range(3)}, {s: (0.0, np.zeros(len(draw))) for s in range(3)})
    assert found.spread == 0 and (found.low, found.high) == pytest.approx((1 - 1.96, 1 + 1.96), abs=0.03)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Three seeds and no difference between the arms: the interval holds zero in 95 of 100 cases, images and seeds varying."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(1000):
        image, seeds = 0.5 * rng.standard_normal(), rng.standard_normal(3)            # the same images for all seeds, a seed's own luck
        found = background.difference({s: (image + seeds[s], image + seeds[s] + 0.5 * rng.standard_normal(200)) for s in range(3)}, {s: (0.0, np.zeros(200)) for s in range(3)})
        held += found.low <= 0 <= found.high
    assert 930 <= held <= 985


def test_arms_differ_in_what_they_are_named_for():
    sizes = {arm.name: sum(p.numel() for p in bafenet.build(background.preset_of(arm)).parameters()) for arm in background.ARMS}
    assert sizes["no sky branch"] < sizes["no exchange"] < sizes["default"] < sizes["dynamic exchange"]
    assert len({sizes[a.name] for a in background.ARMS if a.exchange == "learnable"}) == 1
    for arm in background.ARMS + background.SCARCE:
        schedule = background.schedule_of(arm, round(768 * arm.share))
        assert schedule.paste == arm.paste and abs(schedule.epochs * round(768 * arm.share) / background.PASSES - 1) < 0.05


def test_parts_of_a_seed_lie_inside_each_other():
    data = scenes.Scenes(60)
    parts = [set(background.Part(data, share, 3).names) for share in (0.1, 0.3, 1.0)]
    assert [len(p) for p in parts] == [6, 18, 60] and parts[0] < parts[1] < parts[2]
    assert parts[0] != set(background.Part(data, 0.1, 4).names)


def test_queue_is_balanced_and_names_each_run_once():
    assert len(set(background.QUEUE)) == len(background.QUEUE) and {s for _, s in background.QUEUE} == {0, 1, 2, 3, 4}
    often = background.DECIDING + background.PLACING
    assert len(often) == 7 and all(sum(a == arm for a, _ in background.QUEUE) == (5 if arm in often else 3) for arm in background.ARMS)


def test_sweep_runs_once_leaves_its_draws_and_skips_what_is_there(data, tmp_path):
    queue = ((background.ARMS[1], 0),)
    sweep = lambda: background.sweep(data, tmp_path / "runs", tmp_path / "results", queue, passes=8, progress=False)
    folder = tmp_path / "runs" / "no-sky-branch-0"; folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX); sweep()
    assert not (tmp_path / "results" / "ledger.csv").exists(), "another process held the run"
    sweep()
    rows = ledger.read(tmp_path / "results" / "ledger.csv")
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    sweep()
    assert [r["protocol"] for r in rows] == ["paper", "corrected"] and all(r["arm"] == "no sky branch" and r["images"] == len(DenseSIRST(data, "test_v2")) for r in rows)
    assert ledger.read(tmp_path / "results" / "ledger.csv") == rows and (folder / "weights.safetensors").stat().st_mtime_ns == before
    found = background.outcomes(rows, tmp_path / "results")
    value, drawn = found["no sky branch", "map12"][0]
    assert value == rows[1]["map12"] and drawn.shape == (background.DRAWS,)
    background.draws_file(tmp_path / "results", background.ARMS[1], 0).unlink()
    with pytest.raises(InputError, match="is missing"): background.outcomes(rows, tmp_path / "results")


def test_every_kept_run_has_its_draws():
    rows = ledger.read("results/ledger.csv")
    lines = background.comparisons(rows, "results")
    assert len({line["what"] for line in lines}) >= 3 and all(line["low"] <= line["high"] for line in lines)
