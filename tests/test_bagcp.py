"""BAG-CP: the authors' recorded pastes, the contract of the default, the slow version of the notebook, distributions."""
import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bafe_nb import bagcp, scenes
from bafe_nb.boxes import InputError
from bafe_nb.densesirst import Sample, load, names

NOTEBOOK = Path(__file__).parent.parent / "nbs" / "05_bagcp.ipynb"


@pytest.fixture(scope="module")
def slow():
    """What the unexported cells of the notebook define: the slow version and the contract."""
    space = {"__name__": "notebook", **vars(bagcp)}
    cells = [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(c["source"]) for c in cells]
    for source in sources:
        if re.match(r"def (naive_|check_contract)", source): exec(compile(source, NOTEBOOK.name, "exec"), space)
    return space


@pytest.fixture(scope="module")
def bank():
    return bagcp.TargetBank([scenes.scene(i) for i in range(40)])


def blank(level=60, h=64, w=64, boxes=(), bright=(), sky=None):
    image, mask = np.full((h, w), level, np.uint8), np.zeros((h, w), bool)
    for (x1, y1, x2, y2), b in zip(boxes, bright):
        image[y1:y2, x1:x2] = b
        mask[y1:y2, x1:x2] = True
    return Sample("blank", image, np.float32(boxes).reshape(-1, 4), np.ones((h, w), bool) if sky is None else sky, mask, np.ones(len(boxes), bool))


def window(h, w, x1, y1, x2, y2):
    mask = np.zeros((h, w), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def noisy(seed, h, w, level, spread, sky):
    image = np.random.default_rng(seed).normal(level, spread, (h, w)).clip(0, 255).astype(np.uint8)
    return Sample(f"noisy{seed}", image, np.zeros((0, 4), np.float32), sky, np.zeros((h, w), bool), np.zeros(0, bool))


def hard():
    """Awkward destinations: tiny and broken skies, saturated ones, skies at the border, images smaller than a window."""
    out = [noisy(i, 40, 50, 80, 3, window(40, 50, x, y, x + s, y + s)) for i, (x, y, s) in enumerate([(20, 10, 1), (20, 10, 3), (0, 0, 6), (44, 34, 6), (10, 10, 12), (0, 0, 40)])]
    out += [noisy(10 + i, 64, 64, level, 4, np.ones((64, 64), bool)) for i, level in enumerate([0, 128, 240, 250, 255])]
    out += [noisy(20 + i, h, w, 60, 2, np.ones((h, w), bool)) for i, (h, w) in enumerate([(1, 1), (1, 40), (5, 7), (12, 12), (17, 300)])]
    speckle = np.random.default_rng(0).random((50, 50)) < 0.8
    out += [noisy(30, 50, 50, 60, 2, speckle), noisy(31, 50, 50, 60, 2, np.zeros((50, 50), bool)), noisy(32, 50, 50, 60, 2, window(50, 50, 0, 0, 50, 4))]
    crowded = [(x, y, x + 4, y + 4) for x in range(0, 60, 8) for y in range(0, 60, 8)]
    return out + [blank(60, boxes=crowded, bright=[120] * len(crowded))]


def strict(before, after, n):
    """The contract, written again without the notebook."""
    gain = after.image.astype(int) - before.image
    assert after.image.dtype == np.uint8 and after.boxes.dtype == np.float32 and after.targets.dtype == bool and after.real.dtype == bool
    assert gain.min(initial=0) >= 0 and not (gain[~before.sky] > 0).any() and not (gain[before.targets] > 0).any()
    m = len(before.boxes)
    assert np.array_equal(after.boxes[:m], before.boxes) and np.array_equal(after.real[:m], before.real) and len(after.boxes) == m + n
    assert not after.real[m:].any() and np.isfinite(after.boxes).all() and np.array_equal(after.targets, before.targets | (gain > 0))
    claimed = np.zeros(gain.shape, bool)
    for x1, y1, x2, y2 in after.boxes[m:].astype(int):
        assert 0 <= x1 < x2 <= gain.shape[1] and 0 <= y1 < y2 <= gain.shape[0]
        patch = gain[y1:y2, x1:x2]
        rows, cols = np.nonzero(patch >= max(1, np.floor(bagcp.CORE * patch.max())))
        assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == (0, y2 - y1, 0, x2 - x1)
        assert not claimed[y1:y2, x1:x2].any()
        claimed[y1:y2, x1:x2] = True
    assert not (gain[~claimed] > 0).any()


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
        plan = bagcp._draw_authors(blank(50), bagcp.bank_of(source), config, rng)
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
    large = bagcp.bank_of(blank(20, boxes=[(5, 5, 17, 9)], bright=[90])).crops[0]
    assert bagcp._source(large, config, (64, 64)).shape == (7, 7)
    fractional = replace(blank(30), boxes=np.float32([[3.7, 4.2, 7.9, 8.1], [9.1, 9.1, 9.9, 12.0]]), real=np.array([True, False]))
    after, n = bagcp.paste(fractional, blank(20, boxes=[(5, 5, 9, 9)], bright=[90]), config, np.random.default_rng(1))
    assert after.boxes[0].tolist() == [3, 4, 7, 8] and len(after.boxes) == 1 + n and after.real[0]


def test_paper_size_is_a_share_of_the_image():
    crop = bagcp.bank_of(blank(20, 128, 128, boxes=[(5, 5, 9, 8)], bright=[90])).crops[0]
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


def test_real_images(data, slow):
    root, total = data, 0
    available = [n for n in names(root, "trainval_v2") if (root / "PNGImages" / f"{n}.png").exists()][:60]
    samples = [load(root, n) for n in available]
    bank = bagcp.TargetBank(samples)
    for i, before in enumerate(samples):
        after, n = bagcp.paste(before, bank, "default", np.random.default_rng(i))
        strict(before, after, n)
        slow["check_contract"](before, after, n)
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
    for before, source in ((none, bank), (blank(255), bank), (blank(60), blank(60)), (blank(60), bagcp.TargetBank([]))):
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


def test_profile_by_hand():
    sample = blank(40, 8, 8)
    sample.image[3:5, 3:5] = [[140, 90], [45, 40]]
    sample = replace(sample, targets=sample.image > 40, boxes=np.float32([[3, 3, 5, 5]]), real=np.array([False]))
    profile, peak = bagcp.TargetBank([sample]).target(0)
    assert peak == 100 and np.allclose(profile, [[1, 0.5], [0.1, 0]])


def test_a_target_drawn_out_by_hand():
    row = np.float32([[0.5, 1.0, 0.5]])
    twice = bagcp.warped(row, 1, 2, 0)                             # bilinear: the straight line through 0.5, 1 and 0.5, and on to 0 outside
    assert twice.shape == (1, 7) and np.allclose(twice, [[0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]], atol=0.02)
    assert bagcp.warped(row.T, 1, 2, np.pi / 2).shape == (7, 1), "along its own direction, the other way round"


def test_stretched_targets_are_targets(bank):
    other = bagcp.TargetBank([scenes.scene(i) for i in range(40)], stretch=0.5, seed=1)
    pairs = [(bank.target(k), other.target(k)) for k in range(len(bank)) if bank.target(k)[0] is not None]
    changed = [(a, b) for a, b in pairs if a[0].shape != b[0].shape or not np.array_equal(a[0], b[0])]
    assert 0.4 < len(changed) / len(pairs) < 0.6 and all(a[1] == b[1] for a, b in pairs), "a share of the shapes, no contrast"
    for _, (p, _) in changed:
        assert p.dtype == np.float32 and p.max() == pytest.approx(1) and max(p.shape) <= bagcp.WIDEST
        assert p[[0, -1]].any(1).all() and p[:, [0, -1]].any(0).all() and (p[p > 0] >= bagcp.CORE).all(), "a tight label"
    assert np.mean([b[0].size / a[0].size for a, b in changed]) > 1.5
    again = bagcp.TargetBank([scenes.scene(i) for i in range(40)], stretch=0.5, seed=1)
    assert all(np.array_equal(other.target(k)[0], again.target(k)[0]) for k in range(0, len(bank), 7) if bank.target(k)[0] is not None)
    sample, n = bagcp.paste(scenes.scene(3), other, "default", np.random.default_rng(0))
    for x1, y1, x2, y2 in sample.boxes[len(sample.boxes) - n:].astype(int): assert sample.sky[y1:y2, x1:x2].all() and sample.targets[y1:y2, x1:x2].any()


def test_bright_sky_lowers_the_peak_and_keeps_the_shape():
    source = blank(20, boxes=[(10, 10, 13, 13)], bright=[220])
    config = replace(bagcp.PASTES["default"], visible=0.0)
    plan = bagcp.draw(blank(225), source, config, np.random.default_rng(2))
    assert plan and all(p.peak == 30 for p in plan)
    assert bagcp.render(blank(225), plan).image.max() == 255


# ---- slow and fast, loop and batch

def test_slow_and_fast_agree(slow, bank):
    total = 0
    cases = hard() + [scenes.scene(i, replace(scenes.SceneConfig(), height=96, width=112)) for i in range(12)]
    for i, before in enumerate(cases):
        image, boxes = slow["paste_naive"](before, bank, bagcp.PASTES["default"], np.random.default_rng(i))
        after, n = bagcp.paste(before, bank, "default", np.random.default_rng(i))
        assert np.array_equal(after.image, image) and np.array_equal(after.boxes[len(before.boxes):], boxes), before.name
        total += n
    assert total > 100


@pytest.fixture(scope="module")
def batch(bank):
    samples = [scenes.scene(300 + i, replace(scenes.SceneConfig(), height=128, width=128)) for i in range(48)]
    stacks = [torch.from_numpy(np.stack([getattr(s, part) for s in samples])) for part in ("image", "sky", "targets")]
    longest = max(max(bank.target(k)[0].shape) for k in range(len(bank)) if bank.target(k)[0] is not None)
    pairs, dice = [], torch.Generator().manual_seed(1)
    for _ in range(2):
        images, masks, labels = bagcp.paste_batch(*stacks, bagcp.bank_tensors(bank, largest=longest), "default", dice)
        for s, image, mask, label in zip(samples, images.numpy(), masks.numpy(), labels):
            real = np.concatenate([s.real, np.zeros(len(label), bool)])
            pairs.append((s, replace(s, image=image, targets=mask, boxes=np.concatenate([s.boxes, label.numpy()]), real=real), len(label)))
    return samples, pairs


def test_batch_keeps_the_contract(batch):
    for before, after, n in batch[1]: strict(before, after, n)


def test_batch_has_the_distributions_of_the_loop(batch, bank):
    samples, pairs = batch
    torch_side = bagcp.appearance((after, np.arange(len(after.boxes)) >= len(after.boxes) - n) for _, after, n in pairs)
    numpy_side = bagcp.appearance(p for seed in (1, 2) for p in bagcp.pasted_by(samples, bank, "default", seed))
    for name in torch_side: assert bagcp.ks_distance(torch_side[name], numpy_side[name]) < 0.12, name
    assert abs(len(torch_side["width"]) / len(numpy_side["width"]) - 1) < 0.15


# ---- what is measured

def test_ks_distance_by_hand():
    assert bagcp.ks_distance([1, 2, 3], [3, 2, 1]) == 0
    assert bagcp.ks_distance([0, 0], [1]) == 1
    assert bagcp.ks_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert abs(bagcp.ks_distance([1, 2, 3], [2, 2, 2, 2]) - 1 / 3) < 1e-12
    with pytest.raises(InputError): bagcp.ks_distance([], [1])


def test_clusters_and_contrast_by_hand():
    b = np.float32([[0, 0, 4, 4], [14, 0, 18, 4], [28, 0, 32, 4], [60, 0, 64, 4]])
    assert sorted(bagcp.cluster_sizes(b)) == [1, 3] and bagcp.neighbour_distance(b).tolist() == [14, 14, 14, 32]
    assert len(bagcp.neighbour_distance(b[:1])) == 0 and len(bagcp.cluster_sizes(b[:0])) == 0
    s = blank(50, boxes=[(10, 10, 13, 13), (14, 10, 17, 13)], bright=[90, 200])
    assert bagcp.peak_contrast(s.image, s.boxes, s.targets).tolist() == [40, 150]


def test_default_clusters_look_like_those_of_the_dataset():
    small = bagcp.TargetBank([blank(30, boxes=[(10, 10, 13, 13), (30, 30, 34, 34), (50, 50, 54, 53)], bright=[110] * 3)])
    big = noisy(3, 256, 256, 60, 2, np.ones((256, 256), bool))
    got = bagcp.appearance(p for seed in range(40) for p in bagcp.pasted_by([big], small, "default", seed))
    assert 4 <= np.median(got["neighbour"]) <= 6.5 and 5.5 <= got["cluster"].mean() <= 7.5
    assert (got["cluster"] <= 9).mean() > 0.95


def test_default_gathers_like_the_pasted_targets(data):
    available = [n for n in names(data, "trainval_v2") if (data / "PNGImages" / f"{n}.png").exists()][:60]
    samples = [load(data, n) for n in available]
    distances, _ = bagcp.realism(samples, bagcp.TargetBank(samples), ("paper", "default"))
    for line in (("neighbour", "pasted"), ("cluster", "pasted")): assert distances["default"][line] < distances["paper"][line] - 0.1, line


# ---- settings and errors

def test_settings_are_frozen_and_named():
    assert list(bagcp.PASTES) == ["none", "copy", "gaussian", "sky", "paper", "default"]
    with pytest.raises(FrozenInstanceError): bagcp.PASTES["paper"].window = 3
    assert bagcp.named("default") is bagcp.PASTES["default"]


def test_bad_input_gets_one_line(bank):
    s = blank()
    for f, word in ((lambda: bagcp.paste(s, bank, "gauss"), "gauss"), (lambda: bagcp.paste(s, bank, bagcp.PasteConfig(law="x")), "'x'"), (lambda: bagcp.paste(s, "S7_20"), "str"),
                    (lambda: bagcp.bank_tensors(bank, largest=1), "largest"), (lambda: bagcp.paste_batch(torch.zeros(1, 4, 4), None, None, None), "uint8"),
                    (lambda: bagcp.paste_batch(torch.zeros(1, 4, 4, dtype=torch.uint8), None, None, None, "paper"), "gaussian")):
        with pytest.raises(InputError, match=word) as caught: f()
        assert "\n" not in str(caught.value)
