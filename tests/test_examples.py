"""Examples: augmentations that keep labels right, draws that depend on nothing drawn before, batches."""
import dataclasses

import numpy as np
import pytest
import torch

from bafe_nb import boxes, densesirst, examples, scenes, schedules
from bafe_nb.boxes import InputError

SHORT = schedules.Schedule("short", epochs=3, batch=4, lr=4e-3, policy="one-cycle", warm_up=0.2, crop=64, average=0.9)
CROWDED = [s for s in map(scenes.scene, range(20)) if len(s.boxes) > 4][:4]   # scenes with targets


def extents(sample):
    return {tuple(b) for b in boxes.from_mask(sample.targets).tolist()}


@pytest.mark.parametrize("turn", range(8))
def test_flips_keep_labels_on_their_targets(turn):
    for s in CROWDED:
        turned = examples.flip(s, turn & 1, turn & 2, turn & 4)
        assert {tuple(b) for b in turned.boxes.tolist()} == extents(turned)
        x1, y1, x2, y2 = s.boxes[0].astype(int); a1, b1, a2, b2 = turned.boxes[0].astype(int)
        assert sorted(s.image[y1:y2, x1:x2].ravel()) == sorted(turned.image[b1:b2, a1:a2].ravel())
        assert turned.sky.sum() == s.sky.sum() and turned.image.flags.c_contiguous


def test_flips_keep_labels_of_real_images(data):
    checked = 0
    for name in densesirst.names(data, "test_v2")[:4]:
        s = densesirst.load(data, name)
        if {tuple(b) for b in s.boxes.tolist()} != extents(s): continue
        for turn in range(8): assert {tuple(b) for b in examples.flip(s, turn & 1, turn & 2, turn & 4).boxes.tolist()} == extents(examples.flip(s, turn & 1, turn & 2, turn & 4))
        checked += 1
    assert checked


def test_minus_one_boxes_disagree_by_two_pixels_after_a_flip():
    s = CROWDED[0]
    authors = dataclasses.replace(s, boxes=boxes.paper(s.boxes))
    there_and_back = boxes.flip(examples.flip(authors, True).boxes, s.width)
    seen_right = boxes.flip(examples.flip(s, True).boxes, s.width)
    assert np.array_equal(there_and_back, authors.boxes)                                      # the flip itself is sound ...
    offset = examples.flip(authors, True).boxes - examples.flip(s, True).boxes
    assert np.array_equal(np.unique(offset[:, [0, 2]]), [1]) and np.array_equal(np.unique(authors.boxes[:, 0] - seen_right[:, 0]), [-1])   # -1 becomes +1


def test_squeeze_by_hand():
    s = CROWDED[1]
    wide = dataclasses.replace(s, image=np.repeat(s.image, 2, 1), sky=np.repeat(s.sky, 2, 1), targets=np.repeat(s.targets, 2, 1), boxes=boxes.scale(s.boxes, 2, 1))
    small = examples.squeeze(wide, 128)
    assert small.image.shape == small.sky.shape == small.targets.shape == (128, 128) and small.sky.dtype == bool
    assert np.allclose(small.boxes, s.boxes / 2)
    assert examples.squeeze(dataclasses.replace(s, boxes=np.float32([[-1, -1, 3, 3]]), real=np.zeros(1, bool)), 512).boxes.tolist() == [[0, 0, 6, 6]]


def test_crop_keeps_boxes_with_half_of_their_area():
    s = scenes.scene(0)
    s = dataclasses.replace(s, boxes=np.float32([[8, 20, 12, 24], [9, 20, 13, 24], [7, 20, 11, 24], [40, 40, 44, 44], [74, 74, 78, 78]]), real=np.arange(5) == 3)
    part = examples.crop(s, 10, 10, 64)
    assert part.image.shape == (64, 64) and np.array_equal(part.image, s.image[10:74, 10:74])
    assert part.boxes.tolist() == [[0, 10, 2, 14], [0, 10, 3, 14], [30, 30, 34, 34]] and part.real.tolist() == [False, False, True]


def test_a_small_image_is_padded_without_new_targets():
    s = CROWDED[2]
    part = examples.pad(s, 300)
    assert part.image.shape == (300, 300) and part.targets.sum() == s.targets.sum() and np.array_equal(part.image[:, 299], part.image[:, 255])
    assert examples.pad(s, 256) is s


def test_focus_shows_targets():
    s = scenes.scene(0)
    s = dataclasses.replace(s, boxes=np.float32([[200, 10, 203, 13]]), real=np.zeros(1, bool))
    rng = np.random.default_rng(0)
    held = lambda focus: np.mean([len(examples.crop(s, *examples.window(s, 64, focus, rng), 64).boxes) for _ in range(300)])
    assert held(1.0) == 1 and held(0.0) < 0.2
    corners = np.array([examples.window(s, 64, 0.5, rng) for _ in range(300)])
    assert corners.min() >= 0 and corners.max() <= 256 - 64


def test_an_example_depends_on_nothing_drawn_before():
    data = scenes.Scenes(6)
    one, two = examples.Examples(data, SHORT, 5), examples.Examples(data, SHORT, 5)
    late = [two[(1, k)] for k in reversed(range(6))][::-1]
    for k in range(6):
        a, b = one[(1, k)], late[k]
        assert np.array_equal(a.image, b.image) and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.sky, b.sky)
    other = examples.Examples(data, SHORT, 6)
    assert any(not np.array_equal(one[(1, k)].image, other[(1, k)].image) for k in range(6))
    assert not np.array_equal(one[(1, 0)].image, one[(2, 0)].image)
    assert sorted(one.order(0)) == list(range(6)) and not np.array_equal(one.order(0), one.order(1))


def test_loader_processes_give_the_same_batches():
    made = examples.Examples(scenes.Scenes(8), SHORT, 0)
    before = torch.get_rng_state()
    here, there = list(examples.loader(made, 3)), list(examples.loader(made, 3, workers=2))
    assert len(here) == len(there) == 3 * 2 - 3 and torch.equal(before, torch.get_rng_state())
    for a, b in zip(here, there):
        assert a.names == b.names and torch.equal(a.images, b.images) and all(map(torch.equal, a.boxes, b.boxes)) and torch.equal(a.targets, b.targets)


def test_repeats_show_every_image_equally_often():
    made = examples.Examples(scenes.Scenes(5), dataclasses.replace(SHORT, repeats=3, batch=4), 0)
    keys = [key for batch in examples.Keys(made) for key in batch]
    assert [len(b) for b in examples.Keys(made)] == [4, 4, 4, 3] * 3 and len(set(keys)) == 45
    assert np.bincount([k % 5 for _, k in keys]).tolist() == [9] * 5
    assert list(examples.Keys(made, 5)) == list(examples.Keys(made))[5:]


def test_pasting_adds_labels_that_lie_on_targets():
    data = scenes.Scenes(8)
    plain, pasted = (examples.Examples(data, dataclasses.replace(SHORT, crop=128, paste=p), 0) for p in ("none", "default"))
    n = [[len(e[(0, k)].boxes) for k in range(8)] for e in (plain, pasted)]
    assert sum(n[1]) > sum(n[0]) and all(a <= b for a, b in zip(*n))
    for k in range(8):
        s = pasted[(0, k)]
        assert all(s.targets[int(y1):int(np.ceil(y2)), int(x1):int(np.ceil(x2))].any() for x1, y1, x2, y2 in s.boxes)


def test_paper_labels_on_scenes_and_on_files(data):
    s = schedules.SCHEDULES["paper"]
    scene = examples.Examples(scenes.Scenes(2), dataclasses.replace(s, paste="none", flips="none"), 0)[(0, 1)]
    assert scene.image.shape == (512, 512)
    assert np.allclose(scene.boxes, np.maximum(boxes.scale(boxes.paper(scenes.Scenes(2)[1].boxes), 2, 2), 0))
    real = densesirst.DenseSIRST(data, "test_v2")
    made = examples.Examples(real, s, 0)
    assert made.data.boxes == "paper" and np.array_equal(examples.labelled(made.data, 0, 'paper').boxes, boxes.paper(densesirst.load(data, real.names[0], "file").boxes))
    assert np.array_equal(examples.target_source(made.data, 0, s).boxes, densesirst.load(data, real.names[0], "file").boxes)
    other = type("Other", (scenes.Scenes,), {"boxes": "paper"})(2)            # a dataset that says so has its minus-one boxes moved back
    assert np.array_equal(examples.labelled(other, 1, "corrected").boxes, scenes.Scenes(2)[1].boxes + 1)
    assert np.array_equal(examples.labelled(other, 1, "paper").boxes, scenes.Scenes(2)[1].boxes)


def test_stretch_changes_what_is_pasted_and_nothing_else():
    with pytest.raises(InputError, match="stretch is 1.5: use a share from 0 to 1"): dataclasses.replace(SHORT, stretch=1.5)
    data, plain = scenes.Scenes(3), dataclasses.replace(schedules.SCHEDULES["hr"], crop=128)
    a, b = (examples.Examples(data, dataclasses.replace(plain, stretch=share), seed=0) for share in (0.0, 1.0))
    assert [p.shape for p, _ in map(a.bank.target, range(5))] != [p.shape for p, _ in map(b.bank.target, range(5))] and len(a.bank) == len(b.bank)
    assert any(not np.array_equal(a[0, k].image, b[0, k].image) for k in range(3))
    none = [examples.Examples(data, dataclasses.replace(plain, paste="none", stretch=share), seed=0)[0, 1].image for share in (0.0, 1.0)]
    assert np.array_equal(*none), "where nothing is pasted the share is of no matter"
