"""Classical detectors: filters worked out by hand, normalisation, box extents, detection on scenes and on real images."""
import numpy as np
import pytest

from bafe_nb import boxes, classical, densesirst, scores
from bafe_nb.classical import METHODS, detect, extents, grow, normalise, peaks
from bafe_nb.scenes import Scenes, scene

SPOT = np.uint8([[5, 20, 5], [20, 40, 20], [5, 20, 5]])


def sky_with(*places, shape=(41, 53), level=20):
    image = np.full(shape, level, np.uint8)
    for y, x in places: image[y - 1:y + 2, x - 1:x + 2] += SPOT
    return image


def test_top_hat_gives_back_what_is_narrower_than_the_disc():
    image = sky_with((10, 12)); image[30:] = 90
    hat = classical.top_hat(image, sigma=0)
    assert np.array_equal(hat[9:12, 11:14], SPOT) and hat.sum() == SPOT.sum()
    assert classical.top_hat(image, size=3, sigma=0)[10, 12] == 20      # a cross of 3 leaves the value one pixel away


def test_laplacian_of_gaussian_of_a_parabola():
    y, x = np.mgrid[-20:21, -20:21]
    image = np.uint8(np.clip(250 - 0.25 * (x ** 2 + y ** 2), 0, 255))
    middle = classical.laplacian_of_gaussian(image, sigma=1.2)[14:27, 14:27]
    assert np.allclose(middle.mean(), 1.2 ** 2 * 4 * 0.25, atol=0.05)    # minus the Laplacian of the paraboloid is 4 * 0.25
    assert classical.laplacian_of_gaussian(255 - image)[14:27, 14:27].max() < 0.6


@pytest.mark.parametrize("inner, outer", [(1, 5), (1, 7), (3, 9)])
def test_patch_contrast_is_inner_mean_minus_frame_mean(inner, outer):
    image = np.random.default_rng(0).integers(0, 256, (30, 34), dtype=np.uint8)
    i, o, y, x = inner // 2, outer // 2, 15, 17
    small, large = (image[y - k:y + k + 1, x - k:x + k + 1].astype(float) for k in (i, o))
    expected = small.mean() - (large.sum() - small.sum()) / (outer ** 2 - inner ** 2)
    assert np.isclose(classical.patch_contrast(image, inner, outer)[y, x], max(expected, 0), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_responses_are_blind_to_a_flat_sky_and_to_its_level(method):
    response = METHODS[method].response
    assert not response(np.full((20, 30), 133, np.uint8)).any()
    a, b = response(sky_with((20, 25), level=20)), response(sky_with((20, 25), level=140))
    assert a.dtype == np.float32 and np.allclose(a, b, atol=1e-3) and np.unravel_index(a.argmax(), a.shape) == (20, 25)


def test_normalise_by_hand():
    response = np.random.default_rng(1).random((120, 130)).astype(np.float32)
    large, small = response[60 - 30:60 + 31, 65 - 30:65 + 31], response[60 - 15:60 + 16, 65 - 15:65 + 16]
    frame = (large.sum() - small.sum()) / (61 ** 2 - 31 ** 2)
    assert np.isclose(normalise(response, 61, 31, 0.5)[60, 65], response[60, 65] / (frame + 0.5), rtol=1e-4)
    assert np.isclose(normalise(response, 61, 0, 0.5)[60, 65], response[60, 65] / (large.mean() + 0.5), rtol=1e-4)
    assert (normalise(np.zeros((9, 9), np.float32)) == 0).all()


def test_peaks_are_local_maxima_in_falling_score_and_the_best_ones():
    rng = np.random.default_rng(2); response = rng.random((60, 70)).astype(np.float32)
    rows, columns, values = peaks(response, response, 0.5, 10 ** 6)
    for y, x in zip(rows, columns): assert response[y, x] == response[max(y - 1, 0):y + 2, max(x - 1, 0):x + 2].max()
    assert (np.diff(values) <= 0).all() and values.min() > 0.5
    few = peaks(response, response, 0.5, 7)
    assert all(np.array_equal(a[:7], b) for a, b in zip((rows, columns, values), few))


def test_growth_stops_at_a_valley_and_at_the_share():
    line = np.zeros((9, 9, 1), np.float32); line[4, :, 0] = [0, 0, 2, 30, 60, 24, 9, 50, 20]
    assert grow(line, 0.1)[4, :, 0].tolist() == [False, False, False, True, True, True, True, False, False]
    assert grow(line, 0.45)[..., 0].sum() == 2
    assert not grow(line, 0.1)[3].any()


def test_extents_are_half_open_and_clipped():
    image = sky_with((10, 12))
    assert np.array_equal(extents(image, np.array([10]), np.array([12]), 0.1), [[11, 9, 14, 12]])
    corner = np.full((12, 12), 10, np.uint8); corner[:2, :2] = 90; corner[0, 0] = 120
    assert np.array_equal(extents(corner, np.array([0]), np.array([0]), 0.1), [[0, 0, 2, 2]])


def test_neighbours_six_pixels_apart_get_their_own_boxes():
    image = sky_with((20, 20), (20, 26), (26, 20), (26, 26))
    for method in METHODS:
        found = detect(image, method)[:4, :4]
        expected = [[x - 1, y - 1, x + 2, y + 2] for y in (20, 26) for x in (20, 26)]
        assert sorted(map(tuple, found)) == sorted(map(tuple, np.float32(expected))), method


@pytest.mark.parametrize("method", METHODS)
def test_detections_have_the_promised_form(method):
    for k in range(30):
        s = scene(k); found = detect(s.image, method)
        assert found.dtype == np.float32 and found.shape[1] == 5 and np.isfinite(found).all()
        boxes.check(found[:, :4], 256, 256, s.name)
        assert (np.diff(found[:, 4]) <= 0).all() and len(found) <= 400
        assert np.array_equal(found, detect(s.image, method))


def test_turning_the_image_turns_the_boxes():
    s = scene(33); found = detect(s.image)[:12]
    turned = detect(np.ascontiguousarray(s.image[:, ::-1]))[:12]
    assert np.allclose(np.sort(boxes.flip(found, width=256), axis=0), np.sort(turned, axis=0), atol=1e-3)


def test_the_sky_gate_drops_peaks_outside_only():
    s = next(scene(k) for k in range(100) if 0.2 < scene(k).sky.mean() < 0.8)
    free, gated = detect(s.image, threshold=2.0), detect(s.image, sky=s.sky, threshold=2.0)
    assert 0 < len(gated) < len(free)
    assert len(detect(s.image, sky=np.zeros_like(s.sky))) == 0 and np.array_equal(detect(s.image, sky=np.ones_like(s.sky)), detect(s.image))
    for x1, y1, x2, y2 in gated[:, :4].astype(int): assert s.sky[y1:y2, x1:x2].any()


def test_changes_reach_the_method():
    image = scene(33).image
    assert len(detect(image, most=5)) <= 5 and (detect(image, threshold=3.0)[:, 4] > 3).all()
    assert len(detect(image, classical.Method(classical.patch_contrast, threshold=1e9))) == 0


def test_scenes_are_neither_trivial_nor_impossible():
    data = Scenes(100, split="val"); drawn = [data[i] for i in range(100)]
    ap = lambda gate: scores.voc_ap([detect(s.image, sky=s.sky if gate else None) for s in drawn], [s.boxes for s in drawn], points=None, legacy=False).ap
    open_, gated = ap(False), ap(True)
    assert 0.5 < open_ < 0.75 and open_ + 0.03 < gated < 0.9


@pytest.mark.parametrize("bad", [lambda: detect(sky_with(), "tophat"), lambda: detect(sky_with().astype(np.float32)), lambda: detect(np.zeros((8, 8, 3), np.uint8)),
                                 lambda: detect(sky_with(), sky=np.ones((3, 3), bool)), lambda: detect(np.zeros((0, 5), np.uint8)), lambda: detect([[1, 2]])])
def test_bad_input_is_refused_in_one_line(bad):
    with pytest.raises(boxes.InputError) as error: bad()
    assert "\n" not in str(error.value) and len(str(error.value)) > 20


def test_tiny_images_work():
    for shape in ((1, 1), (3, 4), (9, 2)):
        for method in METHODS: assert detect(np.full(shape, 9, np.uint8), method).shape == (0, 5)


def test_floor_on_real_images(data):
    names = densesirst.names(data, "test_v2")[:24]
    real = [densesirst.load(data, name) for name in names]
    for method in METHODS:
        curve = scores.voc_ap([detect(s.image, method) for s in real], [s.boxes for s in real], points=None, legacy=False)
        assert curve.ap > 0.4 and curve.recall > 0.7, method
