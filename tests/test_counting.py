"""Counting again: the published tables, one target by hand, clusters, the row of a dataset."""
from dataclasses import replace

import numpy as np
import pytest
from devkit import H, W, kit, one_line

from bafe_nb import counting
from bafe_nb import densesirst as ds


def test_published_tables():
    assert [len(counting.published(n)) for n in ("datasets", "detectors", "adascope", "segmentation")] == [5, 33, 21, 2]
    ours = [r for r in counting.published("detectors") if "BAFE" in r["method"]]
    assert {r["map07"] for r in ours} == {"0.283", "0.274"} and all(r["source"] for n in ("datasets", "detectors") for r in counting.published(n))
    assert "'x'" in one_line(counting.published, "x")


def test_measure_by_hand(kit):
    a = ds.load(kit, "a")
    image = np.full((H, W), 10, np.uint8); image[a.targets] = 30; image[3, 2] = 90
    m = counting.measure(replace(a, image=image))
    assert m["area"].tolist() == [9, 8] and m["contour_area"].tolist() == [4, 3] and m["width"].tolist() == [3, 2]
    np.testing.assert_allclose(m["contrast"], [(8 * 30 + 90) / 90, 3])
    apart = np.hypot(10 - 3.5, 3 - 4.5)
    np.testing.assert_allclose(m["distance"], [apart, apart], rtol=1e-6)
    assert m["cluster"].tolist() == [2, 2] and m["brightest"].tolist() == [1, 0] and m["in_sky"].tolist() == [1, 1]


def test_clusters_are_chains():
    line = np.float32([[x, 0, x + 2, 2] for x in (40, 0, 20, 10, 60.5)])
    assert counting.clusters(line).tolist() == [0, 1, 1, 1, 4] and counting.clusters(line, 20).tolist() == [0, 0, 0, 0, 4]


def test_statistics_of_the_kit(kit):
    row = counting.statistics(kit, progress=False)
    assert (row["images"], row["targets"], row["real"], row["pasted"], row["clusters"]) == (2, 3, 3, 0, 1)
    assert row["mean_area"] == pytest.approx(26 / 3) and row["most_frequent_size"] == "3 x 3" and row["targets_per_cluster"] == 2 and row["sky_fraction"] == pytest.approx(8 / H)
    assert all(v is None or isinstance(v, (int, float, str)) and not isinstance(v, np.generic) for v in row.values()) and row["mean_area_pasted"] is None
    table = counting.dataset_table(row)
    assert len(table) == 7 and table[-1]["mean_area"] == 8.7 and table[-1]["targets"] == 3 and table[4]["targets"] == 13655
    assert "empty" in one_line(counting.statistics, [])


# real files

def test_pasted_targets_stand_in_sky(data):
    for name in ds.names(data, "test_v2")[:24]:
        sample = ds.load(data, name)
        assert counting.measure(sample)["in_sky"][~sample.real].all(), name
