"""Boxes: hand-worked numbers, mirrors against pixels, suppression against the naive loop, and what bad boxes say."""
import numpy as np
import pytest

from bafe_nb import boxes as B
from bafe_nb.boxes import InputError


def some_boxes(n, seed=0, extent=60.0, side=9.0):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, extent, (n, 2))
    return np.float32(np.column_stack([xy, xy + rng.uniform(0.5, side, (n, 2))]))


def iou_by_hand(a, b, extra=0.0):
    w = min(a[2], b[2]) - max(a[0], b[0]) + extra
    h = min(a[3], b[3]) - max(a[1], b[1]) + extra
    shared = max(w, 0) * max(h, 0)
    areas = [(c[2] - c[0] + extra) * (c[3] - c[1] + extra) for c in (a, b)]
    return shared / (sum(areas) - shared)


def test_one_diagonal_pixel_leaves_four_fourteenths():
    a, b = [[0, 0, 3, 3]], [[1, 1, 4, 4]]
    assert B.iou(a, b)[0, 0] == np.float32(4 / 14)
    assert B.iou(a, b, legacy=True)[0, 0] == np.float32(9 / 23)
    assert B.area(a)[0] == 9 and B.area(a, legacy=True)[0] == 16
    assert B.iou(a, b).dtype == np.float32


@pytest.mark.parametrize("legacy", [False, True])
def test_iou_equals_the_scalar_formula(legacy):
    a, b = some_boxes(17, 1, 12.0), some_boxes(23, 2, 12.0)
    expected = [[iou_by_hand(p, q, float(legacy)) for q in b.tolist()] for p in a.tolist()]
    got = B.iou(a, b, legacy)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(got, B.iou(b, a, legacy).T)
    assert np.max(expected) > 0.2 and np.min(expected) == 0


def test_iou_ignores_where_the_pair_lies():
    a, b = some_boxes(20, 1).round(), some_boxes(20, 2).round()
    np.testing.assert_array_equal(B.iou(B.shift(a, 5, -3), B.shift(b, 5, -3)), B.iou(a, b))
    np.testing.assert_array_equal(B.iou(B.scale(a, 2, 4), B.scale(b, 2, 4)), B.iou(a, b))


def test_empty_inputs():
    assert B.iou([], [[0, 0, 1, 1]]).shape == (0, 1) and B.iou([], []).shape == (0, 0)
    assert B.area([]).shape == (0,) and B.flip([], width=5).shape == (0, 4)
    assert B.nms([], []).shape == (0,) and B.from_mask(np.zeros((3, 4), bool)).shape == (0, 4)
    assert B.as_boxes(np.zeros((0, 5))).shape == (0, 5) and B.to_coco([]).shape == (0, 4)
    assert B.check([], 4, 4, "x").shape == (0, 4)


def test_mirrored_boxes_hold_the_mirrored_pixels():
    mask = np.random.default_rng(3).random((31, 47)) < 0.05
    both = B.flip(B.from_mask(mask), width=47, height=31)
    assert sorted(both.tolist()) == sorted(B.from_mask(mask[::-1, ::-1]).tolist())
    one = B.flip(B.from_mask(mask), height=31)
    assert sorted(one.tolist()) == sorted(B.from_mask(mask[::-1]).tolist())
    b = some_boxes(9).round()
    np.testing.assert_array_equal(B.flip(B.flip(b, width=70), width=70), b)


def test_minus_one_boxes_turn_their_offset_round_in_the_mirror():
    b = np.float32([[3, 2, 6, 5]])
    assert B.paper(b).tolist() == [[2, 1, 5, 4]]
    offset = B.flip(B.paper(b), width=20) - B.flip(b, width=20)
    assert offset.tolist() == [[1, -1, 1, -1]]
    np.testing.assert_allclose(B.iou(B.shift(b, -1, -1), B.shift(b, 1, -1)), 0.2)


def test_moving_keeps_scores_and_leaves_the_input_alone():
    d = np.float32([[1, 2, 4, 6, 0.75]])
    before = d.copy()
    for moved in (B.shift(d, 1, 1), B.scale(d, 2, 2), B.clip(d, 3, 3), B.flip(d, width=9, height=9), B.paper(d)):
        assert moved.shape == (1, 5) and moved[0, 4] == 0.75 and moved.dtype == np.float32
        assert not np.array_equal(moved, d)
    np.testing.assert_array_equal(d, before)


def test_clip():
    assert B.clip([[-2, 1, 3, 9], [2, 2, 3, 3]], 8, 6).tolist() == [[0, 1, 3, 6], [2, 2, 3, 3]]
    assert B.area(B.clip([[20, 20, 30, 30]], 8, 6))[0] == 0


def test_components_touch_by_their_corners():
    mask = np.zeros((6, 10), bool)
    mask[1:3, 1:3] = True
    mask[3, 3] = True
    mask[1, 7] = True
    assert B.from_mask(mask).tolist() == [[1, 1, 4, 4], [7, 1, 8, 2]]
    assert B.from_mask(np.ones((2, 3))).tolist() == [[0, 0, 3, 2]]


def test_components_come_row_by_row():
    mask = np.random.default_rng(5).random((60, 80)) < 0.02
    b = B.from_mask(mask)
    keys = list(zip(b[:, 1].tolist(), b[:, 0].tolist()))
    assert keys == sorted(keys) and len(keys) > 30


def test_coco_round_trip():
    b = some_boxes(50).round()
    assert B.to_coco([[3, 2, 6, 9]]).tolist() == [[3, 2, 3, 7]]
    np.testing.assert_array_equal(B.from_coco(B.to_coco(b)), b)


def nms_one_by_one(boxes, scores, threshold):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if all(B.iou(boxes[i:i + 1], boxes[k:k + 1])[0, 0] <= np.float32(threshold) for k in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("n, extent, threshold", [(130, 60.0, 0.5), (200, 15.0, 0.5), (129, 12.0, 0.3), (64, 8.0, 0.6), (1, 8.0, 0.5)])
def test_suppression_equals_the_naive_loop(n, extent, threshold):
    b, scores = some_boxes(n, n, extent), np.random.default_rng(n).random(n).astype(np.float32)
    expected = nms_one_by_one(b, scores, threshold)
    assert B.nms(b, scores, threshold).tolist() == expected
    for block in (1, 7, 1000):
        assert B.nms(b, scores, threshold, block=block).tolist() == expected


def test_suppression_by_hand():
    b = np.float32([[0, 0, 4, 4], [0, 0, 4, 5], [1, 0, 5, 4], [2, 0, 6, 4], [9, 0, 12, 3]])
    scores = np.float32([0.9, 0.8, 0.7, 0.6, 0.5])
    assert B.nms(b, scores).tolist() == [0, 3, 4]
    assert B.nms(b, scores[::-1]).tolist() == [4, 3, 1]


def test_suppression_wants_a_score_for_each_box():
    with pytest.raises(InputError, match="3 boxes and 2 scores"): B.nms(np.array([[0, 0, 3, 3]] * 3, np.float32), [.5, .4])


def test_suppression_is_strict_and_ties_keep_their_order():
    half = [[0, 0, 2, 1], [0, 0, 1, 1]]
    assert B.nms(half, [1.0, 0.5]).tolist() == [0, 1]
    assert B.nms(half, [1.0, 0.5], iou=0.49).tolist() == [0]
    assert B.nms([[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]], [0.5, 0.5, 0.5]).tolist() == [0, 2]


def test_suppression_against_the_recorded_decoder(golden):
    """The authors' decoder, recorded with and without suppression: what is left of the second is the first."""
    import torch
    record = torch.load(golden / "predict_by_feat.pt", weights_only=True)
    for image in (0, 1):
        every, kept = (record[f"rescale0_nms{k}_img{image}_bboxes"].numpy() for k in (0, 1))
        scores, best = (record[f"rescale0_nms{k}_img{image}_scores"].numpy() for k in (0, 1))
        index = B.nms(every, scores, 0.5)[:100]
        np.testing.assert_array_equal(every[index], kept)
        np.testing.assert_array_equal(scores[index], best)


@pytest.mark.parametrize("box, words", [
    ([1, 1, np.nan, 4], "not finite"), ([1, 1, np.inf, 4], "not finite"), ([3, 2, 3, 5], "empty"), ([6, 2, 3, 5], "empty"),
    ([-1, 0, 3, 3], "outside"), ([5, 2, 12, 5], "outside"), ([5, 2, 7, 8], "outside")])
def test_bad_boxes_are_named(box, words):
    with pytest.raises(InputError, match=words) as caught:
        B.check([[0, 0, 2, 2], box], 9, 7, "labels/a.xml")
    text = str(caught.value)
    assert text.startswith("labels/a.xml: box 1 ") and "\n" not in text and ": " in text


def test_good_boxes_pass_up_to_the_border():
    assert B.check([[0, 0, 9, 7]], 9, 7, "x").tolist() == [[0, 0, 9, 7]]


@pytest.mark.parametrize("bad", [[1, 2, 3, 4], [[1, 2, 3]], np.zeros((2, 6)), np.zeros((1, 2, 4))])
def test_wrong_shapes_are_refused(bad):
    with pytest.raises(InputError, match="shape"):
        B.as_boxes(bad)


def test_real_masks_and_labels_agree(data):
    """On real images nearly every label equals the extent of a mask component, and no minus-one label does."""
    from bafe_nb import densesirst
    exact = shifted = total = 0
    for name in sorted(p.stem for p in (data / "PNGImages").glob("*.png"))[:40]:
        written = densesirst.read_boxes(data / "SIRST/BBox" / f"{name}.xml")
        extents = {tuple(e) for e in B.from_mask(densesirst.read_mask(data / "SIRST/PaletteMask" / f"{name}.png")).tolist()}
        assert len(extents) == len(written)
        total += len(written)
        exact += sum(tuple(b) in extents for b in written.tolist())
        shifted += sum(tuple(b) in extents for b in B.paper(written).tolist())
    assert exact + shifted == total and exact > 0.95 * total
