"""What is measured of pasted targets, and how far they are from those of the dataset."""
import numpy as np
import pytest
from pasting import blank, noisy

from bafe_nb import realism, target_bank
from bafe_nb.boxes import InputError
from bafe_nb.densesirst import load, names


def test_ks_distance_by_hand():
    assert realism.ks_distance([1, 2, 3], [3, 2, 1]) == 0
    assert realism.ks_distance([0, 0], [1]) == 1
    assert realism.ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert abs(realism.ks_distance([1, 2, 3], [2, 2, 2, 2]) - 1 / 3) < 1e-12
    with pytest.raises(InputError): realism.ks_distance([], [1])


def test_contrast_by_hand():
    s = blank(50, boxes=[(10, 10, 13, 13), (14, 10, 17, 13)], bright=[90, 200])
    assert realism.peak_contrast(s.image, s.boxes, s.targets).tolist() == [40, 150]


def test_default_clusters_look_like_those_of_the_dataset():
    small = target_bank.TargetBank([blank(30, boxes=[(10, 10, 13, 13), (30, 30, 34, 34), (50, 50, 54, 53)], bright=[110] * 3)])
    big = noisy(3, 256, 256, 60, 2, np.ones((256, 256), bool))
    got = realism.appearance(p for seed in range(40) for p in realism.pasted_by([big], small, "default", seed))
    assert 4 <= np.median(got["neighbour"]) <= 6.5 and 5.5 <= got["cluster"].mean() <= 7.5
    assert (got["cluster"] <= 9).mean() > 0.95


def test_default_gathers_like_the_pasted_targets(data):
    available = [n for n in names(data, "trainval_v2") if (data / "PNGImages" / f"{n}.png").exists()][:60]
    samples = [load(data, n) for n in available]
    distances, _ = realism.realism(samples, target_bank.TargetBank(samples), ("paper", "default"))
    for line in (("neighbour", "pasted"), ("cluster", "pasted")): assert distances["default"][line] < distances["paper"][line] - 0.1, line
