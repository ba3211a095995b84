"""Changed images, other generators, and recall by centres at a fixed precision."""
import dataclasses

import numpy as np
import pytest

from bafe_nb import generators, scenes
from bafe_nb.boxes import InputError, from_mask
from bafe_nb.generators import CONDITIONS, GENERATORS, Changed, add_cluster, centre_hits, endure, recall_at_precision

OPEN = dataclasses.replace(scenes.scene(3), sky=np.ones((256, 256), bool))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_cluster_touches_only_its_targets(name):
    for seed in range(8):
        grown, n = add_cluster(OPEN, GENERATORS[name], np.random.default_rng(seed))
        new, before = grown.boxes[len(OPEN.boxes):], len(OPEN.boxes)
        low, high = GENERATORS[name].members
        assert len(new) == n <= high and n >= low - 2 and (grown.boxes[:before] == OPEN.boxes).all() and not grown.real[before:].any()
        assert (grown.image[~grown.targets] == OPEN.image[~grown.targets]).all() and (grown.image >= OPEN.image).all()
        assert {tuple(b) for b in new} <= {tuple(b) for b in from_mask(grown.targets)}          # labels are the extents of the mask, and none touch


def test_nothing_is_added_outside_the_sky():
    blind = dataclasses.replace(OPEN, sky=np.zeros_like(OPEN.sky))
    assert add_cluster(blind, GENERATORS["near"], np.random.default_rng(0))[1] == 0
    half = OPEN.sky.copy(); half[128:] = False
    grown, n = add_cluster(dataclasses.replace(OPEN, sky=half), GENERATORS["far"], np.random.default_rng(1))
    assert n and grown.boxes[-n:, 3].max() <= 128


def test_far_targets_are_larger_than_near_ones():
    size = {}
    for name, g in GENERATORS.items():
        grown = [add_cluster(OPEN, g, np.random.default_rng(k)) for k in range(20)]
        size[name] = np.concatenate([s.boxes[-n:, 2:] - s.boxes[-n:, :2] for s, n in grown if n]).mean()
    assert 3 < size["near"] < 5 and size["far"] > 1.4 * size["near"]


def test_changes_of_the_image():
    image, rng = OPEN.image, np.random.default_rng(0)
    assert (generators.noisy(image + 60, 4, rng).astype(float) - (image + 60.0)).std() == pytest.approx(4, rel=0.05)
    assert generators.faded(image, 0.0).std() == 0 and np.array_equal(generators.faded(image, 1.0), image)
    assert generators.blurred(image, 0.8).astype(float).std() < image.std()


def test_every_method_sees_the_same_images():
    for condition in CONDITIONS:
        a, b = (Changed(scenes.Scenes(3), condition)[2] for _ in range(2))
        assert np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes)
    with pytest.raises(InputError, match="fog"): Changed(scenes.Scenes(1), "fog")


def test_recall_by_hand():
    truth = np.array([[0, 0, 3, 3], [10, 0, 13, 3], [30, 0, 33, 3]], np.float32)
    found = np.array([[1, 0, 4, 3, .9], [10, 0, 13, 3, .8], [50, 0, 53, 3, .7], [30, 2, 33, 5, .6]], np.float32)
    assert centre_hits(found, truth).tolist() == [0, 1, -1, 2] and centre_hits(found, truth[:0]).tolist() == [-1] * 4
    fresh = np.array([False, True, True])
    assert recall_at_precision([found], [truth], [fresh], 0.75) == (1.0, 1.0, pytest.approx(0.6))
    assert recall_at_precision([found], [truth], [fresh], 0.9) == (0.5, pytest.approx(2 / 3), pytest.approx(0.8))
    assert recall_at_precision([found[2:3]], [truth], [fresh]) == (0.0, 0.0, None)


def test_equal_scores_are_taken_all_or_none():
    """Nine hits and 91 false alarms of one score, hits first: at that score the precision is 0.09 and nothing else."""
    truth = np.array([[20 * k, 0, 20 * k + 3, 3] for k in range(9)], np.float32)
    found = np.concatenate([np.c_[truth, np.full(9, .5)], np.c_[truth[:1] + 1000, [.5]].repeat(91, 0)]).astype(np.float32)
    assert recall_at_precision([found], [truth], [np.ones(9, bool)], 0.9) == (0.0, 0.0, None)


def test_a_perfect_detector_endures_everything():
    rows = endure(lambda s: np.c_[s.boxes, np.full(len(s.boxes), 0.9, np.float32)], scenes.Scenes(6))
    assert [r["condition"] for r in rows] == list(CONDITIONS) and all(r["recall"] == 1 for r in rows)
    assert all((r["recall_new"] == 1) == (r["new"] > 0) for r in rows) and rows[-1]["new"] > 0
