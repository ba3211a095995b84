"""BAG-CP: the authors' recorded pastes, the contract of the default, the slow version of the notebook."""
import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from pasting import blank, forty_scenes, noisy, strict

from bafe_nb import bagcp, scenes, target_bank
from bafe_nb.boxes import InputError
from bafe_nb.densesirst import load, names

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "05_bagcp.ipynb"


@pytest.fixture(scope="module")
def slow():
    """What the unexported cells of the notebook define: the slow version."""
    space = {"__name__": "notebook", **vars(bagcp)}
    cells = [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in cells]
    for source in sources:
        if re.match(r"def naive_", source): exec(compile(source, NOTEBOOK.name, "exec"), space)
    return space


@pytest.fixture(scope="module")
def bank(): return forty_scenes()


def window(h, w, x1, y1, x2, y2):
    mask = np.zeros((h, w), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def hard():
    """Awkward destinations: tiny and broken skies, saturated ones, skies at the border, images smaller than a window."""
    out = [noisy(i, 40, 50, 80, 3, window(40, 50, x, y, x + s, y + s)) for i, (x, y, s) in enumerate([(20, 10, 1), (20, 10, 3), (0, 0, 6), (44, 34, 6), (10, 10, 12), (0, 0, 40)])]
    out += [noisy(10 + i, 64, 64, level, 4, np.ones((64, 64), bool)) for i, level in enumerate([0, 128, 240, 250, 255])]
    out += [noisy(20 + i, h, w, 60, 2, np.ones((h, w), bool)) for i, (h, w) in enumerate([(1, 1), (1, 40), (5, 7), (12, 12), (17, 300)])]
    speckle = np.random.default_rng(0).random((50, 50)) < 0.8
    out += [noisy(30, 50, 50, 60, 2, speckle), noisy(31, 50, 50, 60, 2, np.zeros((50, 50), bool)), noisy(32, 50, 50, 60, 2, window(50, 50, 0, 0, 50, 4))]
    crowded = [(x, y, x + 4, y + 4) for x in range(0, 60, 8) for y in range(0, 60, 8)]
    return out + [blank(60, boxes=crowded, bright=[120] * len(crowded))]


# ---- the authors' law

def test_gaussians_equal_the_recorded_ones(golden):
    recorded = np.load(golden / "paste_cases.npz")
    keys = [k[:-7] for k in recorded if k.endswith("_params")]
    assert len(keys) == 20
    for k in keys:
        h, w, *p = recorded[k + "_params"]
        g = bagcp.gaussian(int(h), int(w), *p)
        assert g.dtype == np.float64
        np.testing.assert_allclose(g, recorded[k + "_G"], atol=1e-12, rtol=0)


def test_pastes_equal_the_recorded_ones(golden):
    recorded = np.load(golden / "paste_cases.npz")
    keys = [k[:-4] for k in recorded if k.endswith("_dst")]
    assert len(keys) == 64
    for k in keys:
        out = bagcp.blend(*(recorded[f"{k}_{part}"] for part in ("dst", "src", "lam", "G")))
        assert out.dtype == np.uint8 and np.array_equal(out, recorded[k + "_out"]), k


def test_gaussian_by_hand():
    g = bagcp.gaussian(1, 3, 1.0, 1.0, 0.0, 0.0, 0.0)
    assert g.tolist() == [[0, 1, 0]]
    g = bagcp.gaussian(3, 1, 0.5, 0.25, 0.0, 1.0, 0.0)
    assert g.argmax() == 2 and g.min() == 0
    wide = bagcp.gaussian(9, 9, 0.6, 0.2, 0, 0, 0)
    np.testing.assert_allclose(bagcp.gaussian(9, 9, 0.6, 0.2, 0, 0, 90), wide.T, atol=1e-12)
    assert np.isnan(bagcp.gaussian(1, 1, 0.5, 0.5, 0, 0, 0)).all()
    with pytest.raises(InputError, match="empty"): bagcp.gaussian(3, 0, 0.5, 0.5, 0, 0, 0)


def test_blend_by_hand():
    assert bagcp.blend(np.uint8([10, 200, 0]), np.uint8([100, 100, 9]), 0.5, np.array([0.5, 1.0, 0.9])).tolist() == [35, 250, 4]
    assert bagcp.blend(np.uint8([200]), np.uint8([200]), 1.0, np.array([1.0])).tolist() == [255]
    assert bagcp.blend(np.uint8([7]), np.uint8([9]), 1.0, np.array([np.nan])).tolist() == [255]


def test_paper_renders_what_blend_says():
    source = blank(20, boxes=[(10, 10, 15, 14)], bright=[90])
    config = replace(bagcp.PASTES["paper"], frame=0)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        plan = bagcp._draw_authors(blank(50), target_bank.bank_of(source), config, rng)
        if not plan: continue
        (x, y, src), = plan
        state = rng.bit_generator.state
        after = bagcp._render_authors(blank(50), plan, config, rng)
        again = np.random.default_rng(0)
        again.bit_generator.state = state
        lam, (sx, sy), (mx, my) = again.uniform(0.5, 1), again.uniform(0.3, 0.6, 2), -again.uniform(0, 0.2, 2)
        g = bagcp.gaussian(4, 5, sx, sy, mx, my, int(again.integers(-90, 90)))
        assert np.array_equal(after.image[y:y + 4, x:x + 5], bagcp.blend(np.full((4, 5), 50), src, lam, g))
        assert after.boxes.tolist() == [[x, y, x + 5, y + 4]] and after.targets.sum() == 20
        return
    raise AssertionError("forty seeds pasted nothing")


def test_paper_keeps_its_quirks():
    config, pixel = replace(bagcp.PASTES["paper"], frame=0), blank(20, boxes=[(8, 8, 9, 9)] * 3, bright=[40] * 3)
    results = [bagcp.paste(blank(30), pixel, config, np.random.default_rng(i)) for i in range(12)]
    assert any(n for _, n in results)
    for after, n in results: assert set(np.unique(after.image)) == ({30, 255} if n else {30}) and (after.image == 255).sum() == n
    large = target_bank.bank_of(blank(20, boxes=[(5, 5, 17, 9)], bright=[90])).crops[0]
    assert bagcp._source(large, config, (64, 64)).shape == (7, 7)
    fractional = replace(blank(30), boxes=np.float32([[3.7, 4.2, 7.9, 8.1], [9.1, 9.1, 9.9, 12.0]]), real=np.array([True, False]))
    after, n = bagcp.paste(fractional, blank(20, boxes=[(5, 5, 9, 9)], bright=[90]), config, np.random.default_rng(1))
    assert after.boxes[0].tolist() == [3, 4, 7, 8] and len(after.boxes) == 1 + n and after.real[0]


def test_paper_size_is_a_share_of_the_image():
    crop = target_bank.bank_of(blank(20, 128, 128, boxes=[(5, 5, 9, 8)], bright=[90])).crops[0]
    paper = bagcp.PASTES["paper"]
    assert bagcp._source(crop, replace(paper, frame=0), (512, 512)).shape == (3, 4)
    assert bagcp._source(crop, replace(paper, frame=128), (256, 256)).shape == (6, 8)
    assert bagcp._source(crop, paper, (512, 512)).shape == (7, 7)


def test_authors_presets_stay_inside_image_and_sky():
    source = scenes.scene(3)
    for name in ("copy", "gaussian", "paper"):
        for i in range(12):
            before = scenes.scene(50 + i)
            after, n = bagcp.paste(before, source, name, np.random.default_rng(i))
            assert len(after.boxes) == len(before.boxes) + n and after.image.dtype == np.uint8
            new = after.boxes[len(before.boxes):]
            assert (new[:, :2] >= 0).all() and (new[:, 2] <= before.width).all() and (new[:, 3] <= before.height).all()
            changed = after.image != before.image
            assert not changed[~after.targets].any()


# ---- the default: the contract

def test_ten_thousand_pastes_on_awkward_skies(bank):
    total, config = 0, replace(bagcp.PASTES["default"], clusters=(0, 0, 0, 0, 0, 1))
    for i, before in enumerate(hard()):
        for seed in range(12):
            after, n = bagcp.paste(before, bank, config, np.random.default_rng([i, seed]))
            strict(before, after, n)
            total += n
    wide = [noisy(100 + i, 256, 320, level, 3, np.ones((256, 320), bool)) for i, level in enumerate([20, 80, 150, 210])]
    many = replace(config, clusters=(0,) * 40 + (1,), apart=0)
    for seed in range(14):
        for i, before in enumerate(wide):
            after, n = bagcp.paste(before, bank, many, np.random.default_rng([i, seed, 7]))
            strict(before, after, n)
            total += n
    assert total >= 10_000


def test_contract_on_scenes_and_their_own_targets(bank):
    for i in range(30):
        before = scenes.scene(200 + i)
        after, n = bagcp.paste(before, bank if i % 2 else scenes.scene(i), "default", np.random.default_rng(i))
        strict(before, after, n)


def test_real_images(data):
    root, total = data, 0
    available = [n for n in names(root, "trainval_v2") if (root / "PNGImages" / f"{n}.png").exists()][:60]
    samples = [load(root, n) for n in available]
    bank = target_bank.TargetBank(samples)
    for i, before in enumerate(samples):
        after, n = bagcp.paste(before, bank, "default", np.random.default_rng(i))
        strict(before, after, n)
        bagcp.check_contract(before, after, n)
        total += n
        assert n == 0 or before.sky.any()
    assert total > 200


def test_input_is_untouched_and_the_seed_decides(bank):
    before = scenes.scene(7)
    copies = [getattr(before, part).copy() for part in ("image", "boxes", "sky", "targets", "real")]
    a, n = bagcp.paste(before, bank, "default", np.random.default_rng(5))
    b, m = bagcp.paste(before, bank, "default", np.random.default_rng(5))
    c, _ = bagcp.paste(before, bank, "default", np.random.default_rng(6))
    assert n == m > 0 and np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes) and not np.array_equal(a.image, c.image)
    for part, old in zip(("image", "boxes", "sky", "targets", "real"), copies): assert np.array_equal(getattr(before, part), old)


def test_nothing_fits_nothing_is_pasted(bank):
    none = blank(60, sky=np.zeros((64, 64), bool))
    for before, source in ((none, bank), (blank(255), bank), (blank(60), blank(60)), (blank(60), target_bank.TargetBank([]))):
        after, n = bagcp.paste(before, source, "default", np.random.default_rng(0))
        assert n == 0 and np.array_equal(after.image, before.image) and len(after.boxes) == 0
    assert bagcp.paste(none, bank, "none", None) == (none, 0)
    for name in ("paper", "default"): assert bagcp.paste(none, bank, name, np.random.default_rng(1))[1] == 0


def test_one_pixel_sources_are_never_pasted_by_default():
    pixels = blank(20, boxes=[(5, 5, 6, 6), (20, 5, 21, 6), (40, 40, 41, 41)], bright=[200, 90, 255])
    assert all(bagcp.paste(blank(60), pixels, "default", np.random.default_rng(i))[1] == 0 for i in range(10))


def test_invisible_targets_are_refused():
    faint = blank(60, boxes=[(5, 5, 8, 8)], bright=[63])
    assert bagcp.paste(blank(60), faint, replace(bagcp.PASTES["default"], least=5), np.random.default_rng(0))[1] == 0
    shown = replace(bagcp.PASTES["default"], least=1, visible=0.0)
    assert bagcp.paste(blank(60), faint, shown, np.random.default_rng(0))[1] > 0
    dim, rough = blank(60, boxes=[(5, 5, 8, 8)], bright=[80]), noisy(1, 64, 64, 100, 30, np.ones((64, 64), bool))
    assert bagcp.paste(rough, dim, "default", np.random.default_rng(0))[1] == 0


def test_bright_sky_lowers_the_peak_and_keeps_the_shape():
    source = blank(20, boxes=[(10, 10, 13, 13)], bright=[220])
    config = replace(bagcp.PASTES["default"], visible=0.0)
    plan = bagcp.draw(blank(225), source, config, np.random.default_rng(2))
    assert plan and all(p.peak == 30 for p in plan)
    assert bagcp.render(blank(225), plan).image.max() == 255


# ---- slow and fast

def test_slow_and_fast_agree(slow, bank):
    total = 0
    cases = hard() + [scenes.scene(i, replace(scenes.SceneConfig(), height=96, width=112)) for i in range(12)]
    for i, before in enumerate(cases):
        image, boxes = slow["paste_naive"](before, bank, bagcp.PASTES["default"], np.random.default_rng(i))
        after, n = bagcp.paste(before, bank, "default", np.random.default_rng(i))
        assert np.array_equal(after.image, image) and np.array_equal(after.boxes[len(before.boxes):], boxes), before.name
        total += n
    assert total > 100


# ---- settings and errors

def test_settings_are_frozen_and_named():
    assert list(bagcp.PASTES) == ["none", "copy", "gaussian", "sky", "paper", "default"]
    with pytest.raises(FrozenInstanceError): bagcp.PASTES["paper"].window = 3
    assert bagcp.named("default") is bagcp.PASTES["default"]


def test_bad_input_gets_one_line(bank):
    s = blank()
    for f, word in ((lambda: bagcp.paste(s, bank, "gauss"), "gauss"), (lambda: bagcp.paste(s, bank, bagcp.PasteConfig(law="x")), "'x'"), (lambda: bagcp.paste(s, "S7_20"), "str")):
        with pytest.raises(InputError, match=word) as caught: f()
        assert "\n" not in str(caught.value)
