"""Samples to paste into, and the contract of pasting, for the tests of notebooks 04b to 05c."""
import numpy as np

from bafe_nb import scenes, target_bank
from bafe_nb.densesirst import Sample


def forty_scenes():
    """A bank of the targets of forty scenes."""
    return target_bank.TargetBank([scenes.scene(i) for i in range(40)])


def blank(level=60, h=64, w=64, boxes=(), bright=(), sky=None):
    image, mask = np.full((h, w), level, np.uint8), np.zeros((h, w), bool)
    for (x1, y1, x2, y2), b in zip(boxes, bright):
        image[y1:y2, x1:x2] = b
        mask[y1:y2, x1:x2] = True
    return Sample("blank", image, np.float32(boxes).reshape(-1, 4), np.ones((h, w), bool) if sky is None else sky, mask, np.ones(len(boxes), bool))


def noisy(seed, h, w, level, spread, sky):
    image = np.random.default_rng(seed).normal(level, spread, (h, w)).clip(0, 255).astype(np.uint8)
    return Sample(f"noisy{seed}", image, np.zeros((0, 4), np.float32), sky, np.zeros((h, w), bool), np.zeros(0, bool))


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
        rows, cols = np.nonzero(patch >= max(1, np.floor(target_bank.CORE * patch.max())))
        assert (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1) == (0, y2 - y1, 0, x2 - x1)
        assert not claimed[y1:y2, x1:x2].any()
        claimed[y1:y2, x1:x2] = True
    assert not (gain[~claimed] > 0).any()
