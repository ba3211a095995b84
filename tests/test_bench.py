"""Benchmarks: what is counted, not how fast it is."""
import numpy as np
import pytest

from bafe_nb import bagcp, bench, target_bank
from bafe_nb.boxes import InputError


def test_turns_alternate_and_count():
    order = []
    times = bench.turns(dict(a=lambda: order.append("a"), b=lambda: order.append("b")), runs=3, warm_up=1)
    assert order == ["a", "b"] * 4 and times["a"].shape == times["b"].shape == (3,)


def test_row_is_the_median():
    row = bench.row("toy", "x", np.array([3.0, 1.0, 10.0]), threads=1)
    assert row == dict(bench="toy", name="x", milliseconds=3.0, fastest=1.0, slowest=10.0, runs=3, threads=1)


def test_the_floor_counts_what_the_paper_counts():
    assert bench.step_operations("paper-r18", 2, 512) == 6 * 2 * 60_179_697_664
    assert bench.matrix_rate(128, 1) > 0


def test_crowded_image_has_exactly_its_targets():
    sample = bench.crowded()
    assert sample.image.shape == (512, 512) and len(sample.boxes) == len(sample.real) == 13
    with pytest.raises(InputError): bench.crowded(targets=500, size=64)


def test_naive_paste_of_the_notebook_equals_the_exported_one():
    naive = bench.naive_paste()
    sample, bank = bench.crowded(), target_bank.bank_of(bench.crowded(100))
    for seed in range(5):
        image, boxes = naive(sample, bank, bagcp.PASTES["default"], np.random.default_rng(seed))
        fast, count = bagcp.paste(sample, bank, "default", np.random.default_rng(seed))
        assert np.array_equal(image, fast.image) and count == len(boxes)


def test_rows_of_bagcp_name_every_candidate():
    names = [row["name"] for row in bench.bagcp_times(runs=1)]
    assert len(names) == len(set(names)) == 5 and any("naive" in n for n in names) and any("floor" in n for n in names)


def test_training_rows_stand_beside_a_floor_of_the_same_minutes():
    rows = bench.train_times(runs=1, preset="bafe-small", batch=1, size=64)
    step, once, floor = rows
    assert step["times_floor"] == pytest.approx(step["milliseconds"] / floor["milliseconds"])
    assert floor["milliseconds"] == pytest.approx(1e-6 * bench.step_operations("bafe-small", 1, 64) / floor["gigaflops"])
    assert "inference" in once["name"] and once["gigaflops"] == floor["gigaflops"]


def test_turns_take_a_clock():
    ticks = iter(range(100))
    assert bench.turns(dict(a=lambda: None), 3, 0, clock=lambda: next(ticks))["a"].tolist() == [1000.0] * 3
