"""The bank of targets: profiles, other shapes, clusters."""
from dataclasses import replace

import numpy as np
import pytest
from pasting import blank, forty_scenes

from bafe_nb import bagcp, scenes, target_bank


@pytest.fixture(scope="module")
def bank(): return forty_scenes()


def test_profile_by_hand():
    sample = blank(40, 8, 8)
    sample.image[3:5, 3:5] = [[140, 90], [45, 40]]
    sample = replace(sample, targets=sample.image > 40, boxes=np.float32([[3, 3, 5, 5]]), real=np.array([False]))
    profile, peak = target_bank.TargetBank([sample]).target(0)
    assert peak == 100 and np.allclose(profile, [[1, 0.5], [0.1, 0]])


def test_a_target_drawn_out_by_hand():
    row = np.float32([[0.5, 1.0, 0.5]])
    twice = target_bank.warped(row, 1, 2, 0)                             # bilinear: the straight line through 0.5, 1 and 0.5, and on to 0 outside
    assert twice.shape == (1, 7) and np.allclose(twice, [[0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]], atol=0.02)
    assert target_bank.warped(row.T, 1, 2, np.pi / 2).shape == (7, 1), "along its own direction, the other way round"


def test_stretched_targets_are_targets(bank):
    other = target_bank.TargetBank([scenes.scene(i) for i in range(40)], stretch=0.5, seed=1)
    pairs = [(bank.target(k), other.target(k)) for k in range(len(bank)) if bank.target(k)[0] is not None]
    changed = [(a, b) for a, b in pairs if a[0].shape != b[0].shape or not np.array_equal(a[0], b[0])]
    assert 0.4 < len(changed) / len(pairs) < 0.6 and all(a[1] == b[1] for a, b in pairs), "a share of the shapes, no contrast"
    for _, (p, _) in changed:
        assert p.dtype == np.float32 and p.max() == pytest.approx(1) and max(p.shape) <= target_bank.WIDEST
        assert p[[0, -1]].any(1).all() and p[:, [0, -1]].any(0).all() and (p[p > 0] >= target_bank.CORE).all(), "a tight label"
    assert np.mean([b[0].size / a[0].size for a, b in changed]) > 1.5
    again = target_bank.TargetBank([scenes.scene(i) for i in range(40)], stretch=0.5, seed=1)
    assert all(np.array_equal(other.target(k)[0], again.target(k)[0]) for k in range(0, len(bank), 7) if bank.target(k)[0] is not None)
    sample, n = bagcp.paste(scenes.scene(3), other, "default", np.random.default_rng(0))
    for x1, y1, x2, y2 in sample.boxes[len(sample.boxes) - n:].astype(int): assert sample.sky[y1:y2, x1:x2].all() and sample.targets[y1:y2, x1:x2].any()


def test_clusters_by_hand():
    b = np.float32([[0, 0, 4, 4], [14, 0, 18, 4], [28, 0, 32, 4], [60, 0, 64, 4]])
    assert sorted(target_bank.cluster_sizes(b)) == [1, 3] and target_bank.neighbour_distance(b).tolist() == [14, 14, 14, 32]
    assert len(target_bank.neighbour_distance(b[:1])) == 0 and len(target_bank.cluster_sizes(b[:0])) == 0
