"""Pasting in batches: the contract and the distributions of the loop."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from pasting import forty_scenes, strict

from bafe_nb import pasting_in_batches, realism, scenes
from bafe_nb.boxes import InputError


@pytest.fixture(scope="module")
def bank(): return forty_scenes()


@pytest.fixture(scope="module")
def batch(bank):
    samples = [scenes.scene(300 + i, replace(scenes.SceneConfig(), height=128, width=128)) for i in range(48)]
    stacks = [torch.from_numpy(np.stack([getattr(s, part) for s in samples])) for part in ("image", "sky", "targets")]
    longest = max(max(bank.target(k)[0].shape) for k in range(len(bank)) if bank.target(k)[0] is not None)
    pairs, dice = [], torch.Generator().manual_seed(1)
    for _ in range(2):
        images, masks, labels = pasting_in_batches.paste_batch(*stacks, pasting_in_batches.bank_tensors(bank, largest=longest), "default", dice)
        for s, image, mask, label in zip(samples, images.numpy(), masks.numpy(), labels):
            real = np.concatenate([s.real, np.zeros(len(label), bool)])
            pairs.append((s, replace(s, image=image, targets=mask, boxes=np.concatenate([s.boxes, label.numpy()]), real=real), len(label)))
    return samples, pairs


def test_batch_keeps_the_contract(batch):
    for before, after, n in batch[1]: strict(before, after, n)


def test_batch_has_the_distributions_of_the_loop(batch, bank):
    samples, pairs = batch
    torch_side = realism.appearance((after, np.arange(len(after.boxes)) >= len(after.boxes) - n) for _, after, n in pairs)
    numpy_side = realism.appearance(p for seed in (1, 2) for p in realism.pasted_by(samples, bank, "default", seed))
    for name in torch_side: assert realism.ks_distance(torch_side[name], numpy_side[name]) < 0.12, name
    assert abs(len(torch_side["width"]) / len(numpy_side["width"]) - 1) < 0.15


def test_bad_input_gets_one_line(bank):
    for f, word in ((lambda: pasting_in_batches.bank_tensors(bank, largest=1), "largest"), (lambda: pasting_in_batches.paste_batch(torch.zeros(1, 4, 4), None, None, None), "uint8"),
                    (lambda: pasting_in_batches.paste_batch(torch.zeros(1, 4, 4, dtype=torch.uint8), None, None, None, "paper"), "gaussian")):
        with pytest.raises(InputError, match=word) as caught: f()
        assert "\n" not in str(caught.value)
