"""Scores: mmdet's recorded numbers, three boxes by hand, properties of AP, Pd and Fa, protocols, and files of detections."""
import json
from dataclasses import replace

import numpy as np
import pytest

from bafe_nb import boxes as bx
from bafe_nb import scores as S
from bafe_nb.boxes import InputError
from bafe_nb.densesirst import Sample

TRUTH = np.float32([[2, 2, 6, 6], [12, 3, 16, 7], [22, 8, 26, 12]])
FOUND = np.float32([[2, 2, 6, 6, 0.9], [16, 12, 20, 16, 0.8], [12, 3, 16, 6, 0.7], [2, 2, 6, 7, 0.6]])
CASES = ("basic", "many_dups", "empty_gt_images", "ignored_gts", "iou_exactly_half", "no_gt_at_all", "no_reassignment", "large")


def random_split(n=15, seed=0):
    rng = np.random.default_rng(seed)
    boxes, detections = [], []
    for _ in range(n):
        m = int(rng.integers(0, 9))
        xy = rng.uniform(0, 80, (m, 2))
        b = np.column_stack([xy, xy + rng.uniform(3, 7, (m, 2))])
        extra = rng.uniform(0, 80, (5, 1)) + np.array([0, 0, 4, 4])
        d = np.concatenate([b + rng.normal(0, 0.5, b.shape), extra])
        boxes.append(np.float32(b))
        detections.append(np.float32(np.column_stack([d, rng.uniform(0.1, 1, len(d))])))
    return detections, boxes


def area_ap(d, b, **more):
    return S.voc_ap(d, b, points=None, legacy=False, **more).ap


# ---- mmdet's numbers

@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule, points", [("11points", 11), ("area", None)])
@pytest.mark.parametrize("legacy", [0, 1])
def test_recorded_average_precision(golden, case, rule, points, legacy):
    expected = json.loads((golden / "voc_expected.json").read_text())[case]
    arrays = np.load(golden / "voc_cases.npz")
    d, b, i = ([arrays[f"{case}/{k}/{kind}"] for k in range(expected["n_images"])] for kind in ("det", "gt", "gt_ignore"))
    c = S.voc_ap(d, b, i, points=points, legacy=bool(legacy))
    assert c.ap == pytest.approx(expected[f"stable_mAP_{rule}_legacy{legacy}"], abs=1e-6)
    assert c.recall == pytest.approx(expected[f"recall_{rule}_legacy{legacy}"], abs=1e-6)
    assert c.total == expected["num_gts"] and len(c.scores) == expected["num_dets"]


# ---- by hand

def test_three_boxes_by_hand():
    c = S.voc_ap([FOUND], [TRUTH], legacy=False)
    assert S.verdicts(FOUND, TRUTH, legacy=False).tolist() == [1, -1, 1, -1]
    assert c.ap == pytest.approx(6 / 11) and c.recall == pytest.approx(2 / 3)
    assert area_ap([FOUND], [TRUTH]) == pytest.approx(5 / 9)
    np.testing.assert_allclose(c.precisions, [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(c.recalls, [1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_a_fifth_detection_by_hand():
    """The first exercise of the notebook: C found last, or first."""
    late, early = (np.vstack([FOUND, [22, 8, 26, 12, s]]) for s in (0.5, 0.95))
    assert S.voc_ap([late], [TRUTH], legacy=False).ap == pytest.approx((4 + 3 * 2 / 3 + 4 * 3 / 5) / 11)
    assert area_ap([late], [TRUTH]) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert area_ap([early], [TRUTH]) == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_there_is_no_second_choice():
    pair, two = [[10, 10, 20, 20], [12, 10, 22, 20]], [[10, 10, 20, 20, 0.9], [10.5, 10, 20.5, 20, 0.8]]
    assert bx.iou(np.float32(two)[1:, :4], pair)[0, 1] > 0.5
    assert S.verdicts(two, pair).tolist() == [S.HIT, S.FALSE_ALARM]


def test_ignored_boxes_leave_no_trace():
    ignored = [[16, 12, 20, 16]]
    assert S.verdicts(FOUND, TRUTH, ignored, legacy=False).tolist() == [S.HIT, S.NEITHER, S.HIT, S.FALSE_ALARM]
    crowd = np.vstack([FOUND, [[16, 12, 20, 16, 0.79]] * 3])
    assert (S.verdicts(crowd, TRUTH, ignored)[-3:] == S.NEITHER).all()
    with_ignored = S.voc_ap([crowd], [TRUTH], [ignored], legacy=False)
    without = S.voc_ap([np.delete(FOUND, 1, axis=0)], [TRUTH], legacy=False)
    assert with_ignored.ap == without.ap and with_ignored.recall == without.recall


def test_a_counted_box_comes_before_an_equal_ignored_one():
    box = [[2, 2, 6, 6]]
    assert S.verdicts([[2, 2, 6, 6, 0.5]], box, box).tolist() == [S.HIT]


def test_overlap_of_exactly_one_half_counts():
    b, d = [[0, 0, 4, 4]], [[0, 0, 4, 2, 0.5]]
    assert S.verdicts(d, b, legacy=False).tolist() == [S.HIT]
    assert S.verdicts(d, b, legacy=True).tolist() == [S.HIT]           # 15 / 25
    assert S.verdicts([[0, 0, 4, 1.99, 0.5]], b, legacy=False).tolist() == [S.FALSE_ALARM]


def test_eleven_points_are_floating_point_numbers():
    assert S.average_precision(np.arange(1, 4) / 10, np.ones(3)) == pytest.approx(3 / 11)
    assert S.average_precision(np.arange(1, 6) / 10, np.ones(5)) == pytest.approx(6 / 11)
    assert S.average_precision(np.arange(1, 1000) / 1000, np.ones(999)) == pytest.approx(10 / 11)


@pytest.mark.parametrize("d, b", [([], []), ([[]], [[]]), ([[]], [TRUTH]), ([FOUND], [[]]), ([FOUND, []], [[], []])])
def test_nothing_to_find_or_nothing_found(d, b):
    for points in (11, None):
        c = S.voc_ap(d, b, points=points)
        assert c.ap == 0 and c.recall == 0 and np.isfinite(c.precisions).all()


# ---- properties

def test_order_of_scores_is_all_that_matters():
    d, b = random_split()
    squeezed = [np.column_stack([x[:, :4], np.float64(x[:, 4]) ** 3 / 2 + 7]) for x in d]
    assert area_ap(squeezed, b) == area_ap(d, b) > 0.3


def test_order_of_images_and_of_detections_does_not_matter():
    d, b = random_split()
    rng = np.random.default_rng(1)
    order = rng.permutation(len(d))
    assert area_ap([rng.permutation(d[k]) for k in order], [b[k] for k in order]) == area_ap(d, b)


def test_perfect_answer_scores_one():
    _, b = random_split()
    perfect = [np.column_stack([x, np.linspace(0.1, 0.9, len(x))]) for x in b]
    for points in (11, None):
        for legacy in (False, True):
            assert S.voc_ap(perfect, b, points=points, legacy=legacy).ap == pytest.approx(1)
    assert S.mean_ap(perfect, b) == pytest.approx(1)


def test_late_false_alarms_are_free_and_early_ones_are_not():
    d, b = random_split()
    alarm = np.float32([[90, 90, 95, 95, 0.01]])
    assert area_ap([np.vstack([x, alarm]) for x in d], b) == pytest.approx(area_ap(d, b), abs=1e-12)
    alarm[0, 4] = 2
    assert area_ap([np.vstack([x, alarm]) for x in d], b) < area_ap(d, b)


def test_a_duplicate_is_a_false_alarm():
    _, b = random_split()
    d = [np.column_stack([x, np.full(len(x), 0.5)]) for x in b]
    twice = [np.vstack([x, x + np.float32([0, 0, 0, 0, 0.1])]) for x in d]
    judged = np.concatenate([S.verdicts(x, y) for x, y in zip(twice, b)])
    assert (judged == S.HIT).sum() == (judged == S.FALSE_ALARM).sum() == sum(map(len, b))


def test_envelope_by_a_slow_second_way():
    d, b = random_split(seed=4)
    c = S.voc_ap(d, b, legacy=False)
    best = [max([p for p, r in zip(c.precisions, c.recalls) if r >= 0.1 * i], default=0) for i in range(11)]
    assert c.ap == pytest.approx(np.mean(best))
    steps, area = np.concatenate([[0], c.recalls]), 0.0
    for k in range(len(c.recalls)):
        area += (steps[k + 1] - steps[k]) * c.precisions[k:].max()
    assert area_ap(d, b) == pytest.approx(area)


def test_mean_over_ten_overlaps():
    d, b = random_split(seed=2)
    each = [area_ap(d, b, iou=t) for t in np.arange(50, 100, 5) / 100]
    assert S.mean_ap(d, b) == pytest.approx(np.mean(each)) and each[0] > each[-1]


def test_reading_a_curve_at_a_score():
    c = S.voc_ap([FOUND], [TRUTH], legacy=False)
    assert c.at(0.65) == pytest.approx((2 / 3, 2 / 3, 2 / 3)) and c.at(0.9) == (0, 0, 0) and c.at(0.0)[0] == 0.5
    assert c.lowest_score(0.6) == pytest.approx(0.7) and c.lowest_score(1.0) == pytest.approx(0.9)
    assert S.voc_ap([FOUND[1:2]], [TRUTH]).lowest_score(0.1) is None and S.voc_ap([[]], [TRUTH]).lowest_score(0.1) is None


def test_equal_scores_cannot_be_split_by_a_threshold():
    d = np.float32([[2, 2, 6, 6, 0.5], [16, 12, 20, 16, 0.5]])
    assert S.voc_ap([d], [TRUTH], legacy=False).lowest_score(0.9) is None


# ---- Pd and Fa

def squares(*corners, side=3, shape=(40, 60)):
    mask = np.zeros(shape, bool)
    for x, y in corners:
        mask[y:y + side, x:x + side] = True
    return mask


def test_centre_of_a_box_and_centroid_of_its_pixels_are_one():
    mask = squares((5, 7), (20, 9))
    _, _, centroids = S.components(mask)
    b = bx.from_mask(mask)
    np.testing.assert_array_equal(centroids, (b[:, :2] + b[:, 2:]) / 2)


@pytest.mark.parametrize("dx, by_box, by_mask", [(2, 1, 1), (3, 1, 0), (4, 0, 0)])
def test_three_pixels_count_for_boxes_and_not_for_masks(dx, by_box, by_mask):
    mask = squares((10, 10))
    a = S.pd_fa([[[10 + dx, 10, 13 + dx, 13, 0.9]]], [mask])
    b = S.pd_fa([squares((10 + dx, 10))], [mask])
    assert (a.found, a.false_pixels) == (by_box, 0 if by_box else 9)
    assert (b.found, b.false_pixels) == (by_mask, 0 if by_mask else 9)
    assert a.targets == b.targets == 1 and a.pixels == b.pixels == mask.size


def test_one_prediction_finds_one_target():
    mask = squares((10, 10), (14, 10), side=2)
    one = S.pd_fa([[[12, 10, 14, 12, 0.9]]], [mask])
    assert (one.found, one.targets) == (1, 2)
    many = S.pd_fa([[[10, 10, 12, 12, 0.9], [10, 10, 12, 12, 0.8]]], [mask])
    assert (many.found, many.false_pixels) == (1, 4)


def test_nearest_pair_first():
    assert S.pair_nearest([[0, 0], [2, 0]], [[1.5, 0], [4, 0]]) == [(1, 0)]
    assert S.pair_nearest([[0, 0], [4, 0]], [[1, 0], [4, 0]]) == [(1, 1), (0, 0)]
    assert S.pair_nearest(np.zeros((0, 2)), [[1, 1]]) == [] and S.pair_nearest([[1, 1]], np.zeros((0, 2))) == []


def test_masks_take_the_first_component_in_raster_order():
    """Two components within reach of one target: the upper one is taken, the nearer one is false, as in the field's metric."""
    mask, guess = squares((10, 10), side=1), squares((10, 8), (10, 11), side=1)
    guess[11, 11] = True
    counted = S.pd_fa([guess], [mask])
    assert (counted.found, counted.false_pixels) == (1, 2)


def test_false_pixels_are_counted_once_and_inside_the_image():
    mask = squares()
    boxes = [[58, 38, 63, 44, 0.9], [58, 38, 63, 44, 0.8], [-5, -5, 1, 1, 0.7], [100, 100, 110, 110, 0.6], [30.2, 30.2, 30.3, 30.3, 0.6]]
    counted = S.pd_fa([boxes], [mask])
    assert counted.false_pixels == 4 + 1 + 0 + 1 and counted.pd is None and counted.fa == 6 / 2400


def test_threshold_is_strict():
    mask = squares((10, 10))
    d = [[10, 10, 13, 13, 0.5]]
    assert S.pd_fa([d], [mask], threshold=0.5).found == 0 and S.pd_fa([d], [mask], threshold=0.499).found == 1


def test_counts_add_up():
    masks = [squares((5, 5), (30, 20)), squares((7, 9), shape=(20, 30))]
    d = [[[5, 5, 8, 8, 0.9]], [[20, 2, 23, 5, 0.9]]]
    both = S.pd_fa(d, masks)
    assert both == S.pd_fa(d[:1], masks[:1]) + S.pd_fa(d[1:], masks[1:])
    assert both.pd == 1 / 3 and both.fa == 9 / (2400 + 600)
    assert S.pd_fa(masks, masks).iou == 1 and S.pd_fa(masks, masks).fa == 0


def test_sky_overlap_is_summed_over_the_split():
    a, b = np.ones((2, 5), bool), np.zeros((4, 5), bool)
    b[:2] = True
    assert S.sky_iou(a, a) == 1 and S.sky_iou(b, ~b) == 0 and S.sky_iou(~a, ~a) == 1
    assert S.sky_iou([a, b], [a, b | True]) == 20 / 30
    with pytest.raises(InputError, match="shape"):
        S.sky_iou(a, b)


# ---- a whole row

class Split:
    """Three samples in memory, one of them named like a near duplicate of DenseSIRST."""
    def __init__(self, names=("a", "b", "c")):
        self.names = list(names)
        corners = [((5, 5), (30, 20)), ((7, 9),), ((50, 30), (20, 20), (8, 8))]
        self.samples = []
        for name, c in zip(self.names, corners):
            mask = squares(*c)
            b = bx.from_mask(mask)
            sky = np.zeros(mask.shape, bool)
            sky[:25] = True
            self.samples.append(Sample(name, np.zeros(mask.shape, np.uint8), b, sky, mask, np.arange(len(b)) == 0))

    def __len__(self): return len(self.names)

    def __getitem__(self, i): return self.samples[i]


def ideal(split):
    return {s.name: np.column_stack([s.boxes, np.linspace(0.9, 0.6, len(s.boxes))]).astype(np.float32) for s in split.samples}


def test_perfect_row():
    split = Split()
    row = S.evaluate(ideal(split), split, skies={s.name: s.sky for s in split.samples}, masks={s.name: s.targets for s in split.samples})
    ones = [k for k in row if k.startswith(("map", "recall", "pd", "precision", "f1", "pixel_iou", "sky_iou"))]
    assert len(ones) >= 20 and all(row[k] == pytest.approx(1) for k in ones)
    assert row["fa"] == row["fa_mask"] == 0 and row["targets"] == row["detections"] == 6 and row["threshold"] == 0.5
    json.dumps(row, allow_nan=False)


def test_row_is_plain_and_keeps_its_keys():
    split = Split()
    full = S.evaluate(ideal(split), split, "paper", 0.7, {s.name: s.sky for s in split.samples}, {s.name: s.targets for s in split.samples})
    bare = S.evaluate({}, split, "corrected")
    assert list(full) == list(bare) and all(v is None or type(v) in (int, float, str) for r in (full, bare) for v in r.values())
    assert bare["map07"] == 0 and bare["pd"] == 0 and bare["sky_iou"] is None and bare["score_at_precision_90"] is None


def test_a_split_without_targets_has_no_recall():
    split = Split(); split.samples = [replace(s, boxes=s.boxes[:0], real=s.real[:0], targets=s.targets & False) for s in split.samples]
    row = S.evaluate({split.samples[0].name: np.array([[1, 1, 4, 4, .9]], np.float32)}, split)
    assert all(row[k] is None for k in ("map07", "map12", "recall", "map50_95", "recall_at_threshold", "f1", "map12_real", "pd")) and row["precision"] == 0 and row["targets"] == 0


def test_paper_protocol_moves_detections_with_the_labels():
    split = Split()
    d, fixed = ideal(split), replace(S.PROTOCOLS["paper"], shift_detections=False)
    assert S.evaluate(d, split, "paper")["map07"] == pytest.approx(1)
    row = S.evaluate(d, split, fixed)
    assert row["map07"] == 0 and row["pd"] == 1                            # 9 / 23 with legacy widths
    moved = {n: bx.paper(x) for n, x in d.items()}
    assert S.evaluate(moved, split, fixed)["map07"] == pytest.approx(1)


def test_protocols_select():
    d = np.column_stack([np.tile([3, 3, 6, 6], (1200, 1)), np.linspace(1, 0, 1200)])
    p, c = S.select(d, S.PROTOCOLS["paper"]), S.select(d, S.PROTOCOLS["corrected"])
    assert len(p) == 100 and len(c) == 1000 and p[0].tolist() == [2, 2, 5, 5, 1] and c[0].tolist() == [3, 3, 6, 6, 1]
    assert len(S.select([[0, 0, 1, 1, 0.05], [0, 0, 1, 1, 0.0501]], S.PROTOCOLS["paper"])) == 1


def test_real_and_pasted_targets_apart():
    split = Split()
    only_real = {s.name: ideal(split)[s.name][:1] for s in split.samples}
    row = S.evaluate(only_real, split)
    assert row["recall_real"] == 1 and row["map12_real"] == pytest.approx(1) and row["recall_pasted"] == 0 and row["recall"] == 0.5
    assert row["recall_real_at_precision_90"] == 1


def test_recall_of_real_targets_where_precision_is_nine_tenths():
    split = Split()
    d = ideal(split)
    d["b"] = np.vstack([np.float32([[40, 5, 43, 8, 0.5]]), d["b"] - np.float32([0, 0, 0, 0, 0.6])])   # a false alarm above b's real target
    row = S.evaluate(d, split)
    assert row["recall_real"] == 1 and row["recall_real_at_precision_90"] == pytest.approx(2 / 3)
    assert row["score_at_precision_90"] == pytest.approx(0.6)


def test_near_duplicates_are_left_out_of_the_unseen_part():
    from bafe_nb.densesirst import near_duplicates
    split = Split(["a", next(iter(near_duplicates())), "c"])
    d = ideal(split)
    d[split.names[1]] = []
    row = S.evaluate(d, split)
    assert row["images_unseen"] == 2 and row["recall_unseen"] == 1 and row["recall"] == pytest.approx(5 / 6)


def test_precision_at_a_given_threshold():
    split = Split()
    row = S.evaluate(ideal(split), split, threshold=0.8)
    assert row["precision"] == 1 and row["recall_at_threshold"] == pytest.approx(3 / 6) and row["threshold"] == 0.8
    assert row["f1"] == pytest.approx(2 / 3) and row["pd"] == pytest.approx(3 / 6)


@pytest.mark.parametrize("words, call", [
    ("nobody", lambda s: S.evaluate({"nobody": []}, s)),
    ("voc", lambda s: S.evaluate({}, s, "voc")),
    ("no sky mask for image 'a'", lambda s: S.evaluate({}, s, skies={})),
    ("no target mask for image 'a'", lambda s: S.evaluate({}, s, masks={})),
    ("shape", lambda s: S.evaluate({"a": np.zeros((2, 4))}, s)),
    ("not finite", lambda s: S.evaluate({"a": [[0, 0, 1, 1, np.nan]]}, s)),
    ("one length", lambda s: S.voc_ap([FOUND], [])),
    ("one an image", lambda s: S.pd_fa([], [np.zeros((2, 2), bool)])),
    ("target mask", lambda s: S.pd_fa([np.zeros((3, 2), bool)], [np.zeros((2, 2), bool)]))])
def test_bad_calls_are_named(words, call):
    with pytest.raises(InputError, match=words) as caught:
        call(Split())
    assert "\n" not in str(caught.value)


def test_a_dataset_of_other_boxes_is_refused():
    split = Split()
    split.boxes = "file"
    with pytest.raises(InputError, match="boxes='corrected'"):
        S.evaluate({}, split)


# ---- files

def test_detections_survive_a_file_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 500, (200, 2))
    d = np.column_stack([xy, xy + rng.uniform(0, 9, (200, 2)), rng.random(200)]).astype(np.float32)
    S.write_detections(tmp_path / "d.json", {"a": d, "b": []})
    back = S.read_detections(tmp_path / "d.json", ["a", "b", "c"])
    np.testing.assert_array_equal(back["a"], d)
    assert back["b"].shape == back["c"].shape == (0, 5) and list(back) == ["a", "b", "c"]
    assert [p.name for p in tmp_path.iterdir()] == ["d.json"]
    entry = json.loads((tmp_path / "d.json").read_text())[0]
    assert set(entry) == {"image_id", "category_id", "bbox", "score"} and entry["image_id"] == "a" and entry["category_id"] == 1
    assert entry["bbox"][2] == pytest.approx(float(d[0, 2]) - float(d[0, 0]))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    S.write_detections(tmp_path / "d.json", {"a": FOUND})
    before = (tmp_path / "d.json").read_bytes()
    with pytest.raises(InputError, match="not finite"):
        S.write_detections(tmp_path / "d.json", {"a": [[0, 0, 1, np.inf, 1]]})
    assert (tmp_path / "d.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="cannot be written"):
        S.write_detections(tmp_path / "nowhere" / "d.json", {})


GOOD = dict(image_id="a", category_id=1, bbox=[1, 2, 3, 4], score=0.5)


@pytest.mark.parametrize("change, words", [
    (dict(image_id="zz"), "not in the split"), (dict(image_id=7), "image_id 7"), (dict(image_id=["a"]), "image_id"),
    (dict(category_id=2), "category_id 2"), (dict(bbox=[1, 2, 3]), "four numbers"), (dict(bbox="1234"), "four numbers"),
    (dict(bbox=[1, 2, -3, 4]), "negative size"), (dict(bbox=[1, 2, 3, float("nan")]), "finite"), (dict(bbox=[1, 2, 3, 1e300]), "finite"),
    (dict(bbox=[1, 2, 3, 10 ** 400]), "finite"), (dict(score=float("inf")), "finite"), (dict(score=None), "finite"), (dict(score="0.5"), "finite"), (dict(score=True), "finite")])
def test_bad_entries_name_file_and_entry(tmp_path, change, words):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([GOOD, {**GOOD, **change}]))
    with pytest.raises(InputError, match=words) as caught:
        S.read_detections(path, ["a"])
    assert str(caught.value).startswith(f"{path}: entry 1 ") and "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize("key", list(GOOD))
def test_missing_keys_are_named(tmp_path, key):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{k: v for k, v in GOOD.items() if k != key}]))
    with pytest.raises(InputError, match=f"entry 0 has no {key}: add it"):
        S.read_detections(path)


@pytest.mark.parametrize("content, words", [
    (b"[", "not JSON"), (b"\xff\xfe\x00", "not JSON"), (b"", "not JSON"), (b"[" * 100_000, "not JSON"), (b"{}", "no list"), (b"3", "no list"), (b"[3]", "entry 0")])
def test_files_that_are_no_results_list(tmp_path, content, words):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        S.read_detections(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        S.read_detections(tmp_path / "nothing.json")


# ---- real images

def test_the_perfect_answer_under_three_protocols(data):
    from bafe_nb import densesirst
    test = densesirst.DenseSIRST(data, "test_v2")
    answer = {s.name: np.column_stack([bx.from_mask(s.targets), np.ones(len(s.boxes))]) for s in (test[i] for i in range(len(test)))}
    corrected, paper = S.evaluate(answer, test, "corrected"), S.evaluate(answer, test, "paper")
    assert corrected["map07"] == pytest.approx(1) and corrected["pd"] == 1 and corrected["fa"] == 0
    assert paper["map12"] > 0.97
    opened = densesirst.DenseSIRST(data, "test_v2", boxes="paper")
    assert S.evaluate(answer, opened, "paper") == paper
    assert S.evaluate(answer, opened, "corrected") == corrected
    assert S.evaluate(answer, test, replace(S.PROTOCOLS["paper"], shift_detections=False))["map07"] < 0.15
