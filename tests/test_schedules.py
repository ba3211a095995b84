"""Schedules: learning rates by hand, choices that are named, optimisers against recorded numbers."""
import dataclasses

import numpy as np
import pytest
import torch

from bafe_nb import bafenet, schedules
from bafe_nb.boxes import InputError

BASE = bafenet.PRESETS["bafe-hr-nano"]
TINY = dataclasses.replace(BASE, name="tiny", widths=(8, 12), down=1, head=dataclasses.replace(BASE.head, in_channels=8, channels=8))
SHORT = schedules.Schedule("short", epochs=3, batch=4, lr=4e-3, policy="one-cycle", warm_up=0.2, crop=64, average=0.9)


# schedules -----------------------------------------------------------------------------------------------------------------------------

def test_paper_schedule_by_hand():
    s = schedules.SCHEDULES["paper"]
    an_epoch = schedules.steps_an_epoch(s, 768)
    assert an_epoch == 1152 and s.epochs * len(range(768)) * s.repeats == 46080
    rate = lambda step: schedules.learning_rate(s, step, an_epoch)
    assert [rate(k) for k in (0, 498)] == [pytest.approx(1 / 3)] * 2
    assert [rate(k) for k in (499, 500, 8 * 1152 - 1)] == [1, 1, 1]        # mmengine's ConstantLR ends one step early
    assert [rate(k) for k in (8 * 1152, 16 * 1152 - 1)] == [pytest.approx(0.1)] * 2
    assert [rate(k) for k in (16 * 1152, 20 * 1152 - 1)] == [pytest.approx(0.01)] * 2


@pytest.mark.parametrize("policy, middle", [("cosine", 1e-3 * (0.1 + 0.9 * 0.5)), ("one-cycle", 1e-3 * (0.1 + 0.9 * 0.5))])
def test_smooth_schedules_by_hand(policy, middle):
    s = schedules.Schedule("x", epochs=1, batch=1, lr=1e-3, policy=policy, warm_up=10, warm_up_factor=0.1, final=0.01)
    rate = lambda step: schedules.learning_rate(s, step, 111)
    assert rate(0) == pytest.approx(1e-4) and rate(5) == pytest.approx(middle)
    assert rate(10) == pytest.approx(1e-3) and rate(60) == pytest.approx(1e-3 * 0.505) and rate(110) == pytest.approx(1e-5)


def test_warm_up_as_a_share_of_all_steps():
    s = schedules.Schedule("x", epochs=2, batch=1, lr=1.0, warm_up=0.25)
    assert schedules.learning_rate(s, 5, 10) == pytest.approx(1.0) and schedules.learning_rate(s, 4, 10) < 1


@pytest.mark.parametrize("field, value, word", [("optimiser", "sgd", "adamw"), ("policy", "linear", "cosine"), ("flips", "both", "dihedral"),
                                                ("paste", "glue", "default"), ("boxes", "file", "paper"), ("epochs", 0, "1 or more"), ("lr", 0, "above 0"), ("epochs", 1.5, "whole number"), ("bank", 0, "1 or more"),
                                                ("crop", 0, "above 0"), ("squeeze", -3, "above 0"), ("clip", -1.0, "above 0"), ("focus", 2.0, "from 0 to 1"), ("average", 1.5, "from 0 to 1"), ("weight_decay", -1.0, "0 or more")])
def test_a_wrong_schedule_is_named(field, value, word):
    with pytest.raises(InputError, match=rf"{field} is .*{word}"): dataclasses.replace(SHORT, **{field: value})


def test_images_of_several_sizes_need_a_crop():
    with pytest.raises(InputError, match="set crop or squeeze"): dataclasses.replace(SHORT, crop=None)
    dataclasses.replace(SHORT, crop=None, batch=1)


# optimisers ----------------------------------------------------------------------------------------------------------------------------

def test_weight_decay_spares_norms_and_biases():
    model = bafenet.build(TINY)
    decayed, spared = schedules.groups(model, 0.05)
    assert {p.ndim for p in decayed["params"]} == {4} or {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in spared["params"]} <= {0, 1} and spared["weight_decay"] == 0 and decayed["weight_decay"] == 0.05
    assert len(decayed["params"]) + len(spared["params"]) == sum(p.requires_grad for p in model.parameters())


def test_muon_groups_hold_each_parameter_once():
    for preset in ("bafe-hr-nano", "bafe-small", "paper-r18"):
        model = bafenet.build(preset)
        parts = schedules.muon_groups(model, 0.02)
        assert sorted(id(p) for g in parts for p in g["params"]) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        assert all(p.ndim > 1 for g in parts if g["use_muon"] for p in g["params"]) and all(g["weight_decay"] == 0 for g in parts for p in g["params"] if p.ndim <= 1)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 8, 8)])
def test_levelled_keeps_the_singular_vectors_and_evens_the_values(shape):
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    out = schedules.levelled(m)
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    inner = u.mT @ out @ vh.mT                                             # diagonal: same vectors
    assert out.shape == m.shape and torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-4)
    assert inner.diagonal(dim1=1, dim2=2).min() > 0.3 and inner.diagonal(dim1=1, dim2=2).max() < 1.3


def test_a_muon_step_moves_a_filter_equally_in_all_directions():
    torch.manual_seed(0)
    model, schedule = bafenet.build("bafe-hr-nano"), schedules.SCHEDULES["hr"]
    step, w = schedules.optimiser(model, dataclasses.replace(schedule, weight_decay=0.0)), model.backbone.down[1][0].conv.weight
    before = w.detach().clone()
    for p in model.parameters(): p.grad = torch.randn_like(p)
    for g in step.param_groups: g["lr"] = 0.01 * g["scale"]
    step.step()
    moved = torch.linalg.svdvals((w.detach() - before).flatten(1))
    assert 0.006 < moved.min() < moved.max() < 0.0125
    assert {g["scale"] for g in step.param_groups if g["use_muon"]} == {1.0, schedules.BOX_RATE}


def toy_run(optimiser, steps=40):
    """Losses of a small regression with decoupled decay and a warm-up to a third, as recorded from dadaptation 3.2."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    x = torch.linspace(-1, 1, 256 * 8).view(8, 256).T.contiguous().sin(); y = torch.sin(x.sum(1, keepdim=True))
    opt, kept = optimiser(model), []
    for step in range(steps):
        for group in opt.param_groups: group["lr"] = 1 / 3 if step < 10 else 1.0
        loss = ((model(x) - y) ** 2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
        kept.append((loss.item(), float(opt.param_groups[0]["d"])))
    return np.array(kept)


def test_dadapt_adam_agrees_with_the_papers_library():
    run = toy_run(lambda m: schedules.optimiser(m, dataclasses.replace(SHORT, optimiser="dadapt-adam", lr=1.0, weight_decay=0.05)))
    assert np.allclose(run[[0, 19, 39]], DADAPTATION_3_2, rtol=2e-4)


DADAPTATION_3_2 = [[0.4365183, 1e-06], [0.1782821, 0.06454019], [0.0045288, 0.06454019]]   # loss and estimate d at steps 0, 19, 39
