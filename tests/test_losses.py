"""The losses: recorded values and gradients of the authors' code, hand-worked numbers, empty images, gradients, and what must raise."""
import math

import numpy as np
import pytest
import torch

from bafe_nb import densesirst
from bafe_nb.boxes import InputError
from bafe_nb.head import Head, HeadConfig, Maps, assign, oracle
from bafe_nb.losses import centerness_loss, compute, focal, gather, iou_loss, mask_loss, occupied, overlap, resample, sky_loss

KEYS = ("cls", "bbox", "ctr", "seg")
FINE = HeadConfig(16, 16, convs=1, strides=(2,), ranges=((-1, 1e8),), norm="batch", large_kernel=False, bottleneck=False, exchange="learnable", target_mask=True, assign="nearest")


@pytest.fixture
def recorded(golden):
    return torch.load(golden / "fcos_targets_losses.pt", weights_only=True)


def maps_of(recorded, images=3):
    return Maps(*([recorded[f"{key}{k}"][:images].clone().requires_grad_() for k in range(3)] for key in KEYS))


# ---- the authors' losses ----

def test_losses_and_gradients_equal_the_recorded_ones(recorded):
    maps = maps_of(recorded)
    parts = compute(maps, [recorded[f"gt_bboxes{k}"] for k in range(3)], torch.cat([recorded[f"sky{k}"] for k in range(3)]), HeadConfig())
    for name, theirs in (("class", "cls"), ("box", "bbox"), ("centerness", "centerness"), ("sky", "seg")):
        torch.testing.assert_close(parts[name], recorded[f"loss_{theirs}"], atol=1e-4, rtol=0)
    assert parts["total"].item() == pytest.approx(sum(parts[k].item() for k in ("class", "box", "centerness", "sky")))
    parts["total"].backward()
    for key, level in zip(KEYS, maps):
        for k, m in enumerate(level): torch.testing.assert_close(m.grad, recorded[f"grad_{key}{k}"], atol=1e-6, rtol=1e-4)


def test_images_without_targets_equal_the_recorded_ones(recorded):
    maps = maps_of(recorded, 2)
    parts = compute(maps, [torch.zeros(0, 4), []], torch.cat([recorded["sky0"], recorded["sky1"]]), HeadConfig())
    torch.testing.assert_close(parts["class"], recorded["empty_loss_cls"], atol=0, rtol=1e-5)
    torch.testing.assert_close(parts["sky"], recorded["empty_loss_seg"], atol=1e-4, rtol=0)
    assert parts["box"] == 0 and parts["centerness"] == 0
    parts["total"].backward()
    assert all((m.grad == 0).all() for level in (maps.boxes, maps.centerness) for m in level)
    assert all(m.grad.abs().sum() > 0 for level in (maps.classes, maps.sky) for m in level)


def test_sky_targets_equal_the_recorded_ones(recorded):
    sky = torch.cat([recorded[f"sky{k}"] for k in range(3)])
    for k, n in enumerate((64, 32, 16)): assert torch.equal(resample(sky, n, n).flatten(), recorded[f"seg_targets{k}"].flatten())


# ---- by hand ----

def test_focal_by_hand_and_at_the_extremes():
    torch.testing.assert_close(focal(torch.zeros(2), torch.tensor([1, 0])), torch.tensor([0.25, 0.75]) * 0.25 * math.log(2))
    torch.testing.assert_close(focal(torch.tensor([200.0, -200.0]), torch.tensor([0, 1])), torch.tensor([150.0, 50.0]))
    logits = torch.tensor([-80.0, 80.0, 0.3], requires_grad=True)
    focal(logits, torch.tensor([0, 1, 1])).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_iou_loss_by_hand():
    a, b = torch.tensor([[1.0, 1, 2, 3]]), torch.tensor([[2.0, 1, 1, 3]])
    assert tuple(float(v) for v in overlap(a, b)) == (8, 16, 16)
    assert float(iou_loss(a, b)) == pytest.approx(math.log(2)) and float(iou_loss(a, b, True)) == pytest.approx(math.log(2))
    assert float(iou_loss(a, a)) == 0


def test_iou_loss_of_a_location_outside_both_boxes_equals_coordinates():
    rng = np.random.default_rng(0); xy = rng.uniform(0, 10, (50, 2)); boxes = rng.uniform(0, 10, (2, 50, 2)); size = rng.uniform(2, 6, (2, 50, 2))
    corners = np.concatenate((boxes, boxes + size), axis=2)
    a, b = (torch.from_numpy(np.concatenate((xy - c[:, :2], c[:, 2:] - xy), axis=1)) for c in corners)
    for k, (p, q) in enumerate(zip(*corners)):
        inner = [min(p[2 + i], q[2 + i]) - max(p[i], q[i]) for i in (0, 1)]; shared = max(inner[0], 0) * max(inner[1], 0)
        around = np.prod([max(p[2 + i], q[2 + i]) - min(p[i], q[i]) for i in (0, 1)]); union = size[0, k].prod() + size[1, k].prod() - shared
        assert [float(v[k]) for v in overlap(a, b)] == pytest.approx([shared, union, around])


def test_only_the_enclosing_term_moves_boxes_that_do_not_meet():
    for enclosing in (False, True):
        d = torch.tensor([[1.0, 1, 1, 1]], requires_grad=True)
        iou_loss(d, torch.tensor([[-3.0, -3, 5, 6]]), enclosing).sum().backward()
        assert bool((d.grad != 0).any()) is enclosing
    assert d.grad[0, 2] < 0 and d.grad[0, 3] < 0                      # right and bottom side go towards the target


def test_centerness_floor_and_start():
    c = torch.tensor([0.5, 0.9])
    torch.testing.assert_close(centerness_loss(torch.logit(c), c), -(c * c.log() + (1 - c) * (1 - c).log()))
    assert float(centerness_loss(torch.zeros(1), torch.tensor([0.3]))) == pytest.approx(math.log(2))


def test_sky_ignores_what_nobody_knows():
    value = sky_loss(torch.full((3,), 2.0), torch.tensor([0, 1, 255], dtype=torch.uint8))
    torch.testing.assert_close(value, torch.tensor([math.log(1 + math.e ** 2), math.log(1 + math.e ** -2), 0]))


def test_occupied_loses_no_target_where_resample_does():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool); mask[0, 3, 5] = mask[0, 40, 61] = True
    for n in (32, 16, 8): assert occupied(mask, n, n).sum() == 2 and occupied(mask, n, n)[0, 3 * n // 64, 5 * n // 64] == 1
    assert resample(mask, 16, 16).sum() == 0


def test_mask_loss_by_hand():
    truth = torch.zeros(1, 4, 4); truth[0, 0, :2] = 1
    assert float(mask_loss(torch.zeros(1, 4, 4), truth)) == pytest.approx(math.log(2) + 1 - 2 / 10)
    assert mask_loss(20 * truth - 10, truth) < 1e-3 < 0.9 < mask_loss(torch.full((1, 4, 4), -10.0), truth)


def test_whole_batch_by_hand():
    maps = Maps([torch.zeros(1, 1, 2, 2)], [torch.full((1, 4, 2, 2), 4.0)], [torch.zeros(1, 1, 2, 2)], [torch.zeros(1, 1, 2, 2)])
    parts = compute(maps, [[[2, 2, 8, 8]]], torch.ones(1, 16, 16), HeadConfig(strides=(8,), ranges=((-1, 1e8),)), weights={"sky": 0.5, "class": 2})
    assert float(parts["class"]) == pytest.approx((0.25 + 3 * 0.75) * 0.25 * math.log(2))
    assert float(parts["box"]) == pytest.approx(math.log(64 / 36)) and float(parts["centerness"]) == float(parts["sky"]) == pytest.approx(math.log(2))
    assert float(parts["total"]) == pytest.approx(2 * float(parts["class"]) + float(parts["box"]) + 1.5 * math.log(2))


def test_gather_reads_the_right_place():
    maps = Maps([torch.zeros(2, 1, 3, 4)], [torch.arange(96.0).view(2, 4, 3, 4)], [torch.arange(24.0).view(2, 1, 3, 4)], [])
    found = gather(maps, 0, torch.tensor([12 + 2 * 4 + 3, 1]))
    assert found.boxes.tolist() == [[59, 71, 83, 95], [1, 13, 25, 37]] and found.centerness.tolist() == [23, 1]


# ---- training ----

def test_every_parameter_of_a_head_gets_a_gradient():
    torch.manual_seed(0)
    head = Head(FINE); spots = torch.zeros(2, 32, 32, dtype=torch.bool); spots[0, 10:13, 4:8] = True
    maps = head([torch.randn(2, 16, 16, 16)])
    compute(maps, [[[4, 10, 8, 13]], []], torch.rand(2, 32, 32) > 0.5, FINE, spots)["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in head.parameters())


def test_an_empty_batch_gives_every_parameter_a_gradient():
    torch.manual_seed(0)
    head = Head(FINE); spots = torch.zeros(2, 32, 32, dtype=torch.bool)
    compute(head([torch.randn(2, 16, 16, 16)]), [[], []], torch.ones(2, 32, 32), FINE, spots)["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_the_total_falls_when_a_head_is_trained():
    torch.manual_seed(0)
    head = Head(FINE); x = torch.randn(2, 16, 16, 16); boxes = [[[4, 10, 8, 13], [20, 20, 21, 21]], [[2, 2, 5, 5]]]
    spots = torch.zeros(2, 32, 32, dtype=torch.bool); spots[0, 10:13, 4:8] = spots[0, 20, 20] = spots[1, 2:5, 2:5] = True
    sky = torch.zeros(2, 32, 32); sky[:, :16] = 1
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2); history = []
    for _ in range(80):
        parts = compute(head([x]), boxes, sky, FINE, spots)
        optimiser.zero_grad(); parts["total"].backward(); optimiser.step(); history.append({k: v.item() for k, v in parts.items()})
    assert history[-1]["total"] < 0.6 * history[0]["total"] and history[-1]["box"] < 0.6 * history[0]["box"]


def test_mixed_precision_gives_float32_losses_near_the_full_ones():
    torch.manual_seed(0)
    head = Head(FINE); x = torch.randn(1, 16, 16, 16); spots = torch.zeros(1, 32, 32)
    args = ([[[4, 10, 8, 13]]], torch.ones(1, 32, 32), FINE, spots)
    full = compute(head([x]), *args)
    with torch.autocast("cpu", torch.bfloat16): half = compute(head([x]), *args)
    for name, value in half.items(): assert value.dtype == torch.float32 and float(value.detach()) == pytest.approx(float(full[name].detach()), rel=0.02)


# ---- what must raise ----

@pytest.mark.parametrize("boxes, sky, masks, weights, says", [
    ([[]], torch.ones(2, 8, 8), torch.ones(2, 8, 8), None, "1 lists of boxes for 2 images"), ([[], []], None, torch.ones(2, 8, 8), None, "sky is None"),
    ([[], []], torch.ones(8, 8), torch.ones(2, 8, 8), None, "one mask per image"), ([[], []], torch.ones(2, 8, 8), None, None, "target_masks is None"),
    ([[], []], torch.ones(2, 8, 8), torch.ones(2, 8, 8), {"skye": 1}, "'skye' is unknown")])
def test_wrong_input_is_refused_in_one_line(boxes, sky, masks, weights, says):
    maps = Maps(*([torch.zeros(2, c, 4, 4)] for c in (1, 4, 1, 2)))
    with pytest.raises(InputError) as error: compute(maps, boxes, sky, FINE, masks, weights)
    assert says in str(error.value) and "\n" not in str(error.value)


# ---- real images ----

def test_an_oracle_has_hardly_any_loss_on_real_images(data):
    config = HeadConfig(strides=(2,), ranges=((-1, 1e8),), assign="nearest", target_mask=False)
    for name in densesirst.names(data, "test_v2")[:8]:
        sample = densesirst.load(data, name); h, w = (-(-n // 2) for n in sample.image.shape)
        sky = torch.from_numpy(sample.sky)[None]
        maps = oracle(assign([sample.boxes], [(h, w)], config), [(h, w)], 1)._replace(sky=[resample(sky, h, w)[:, None] * 18.0 - 9])
        parts = compute(maps, [sample.boxes], sky, config)
        assert parts["class"] < 0.01 and parts["box"] < 1e-5 and parts["sky"] < 1e-3
        worse = maps._replace(boxes=[maps.boxes[0] + torch.tensor([-1.0, 0, 1, 0]).view(1, 4, 1, 1)])      # one pixel to the right
        wide = sample.boxes[:, 2] - sample.boxes[:, 0]; cost = lambda w: float(np.log((w + 1) / (w - 1)))     # -log IoU of a box w wide
        assert cost(wide.max()) - 1e-5 <= compute(worse, [sample.boxes], sky, config)["box"] <= cost(wide.min()) + 1e-5
