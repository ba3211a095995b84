"""The fine head: which locations are positive, what a side says, what the second look sees, losses, detections."""
import dataclasses

import numpy as np
import pytest
import torch

from bafe_nb import bafenet, evaluation, examples, fine, head, scenes, training
from bafe_nb.boxes import InputError
from bafe_nb.fine import CENTRAL, EVERY_PIXEL, REACH, FineConfig, FineHead, FineMaps

BASE = bafenet.PRESETS["bafe-hr-nano"]
TINY = dataclasses.replace(BASE, name="tiny", widths=(8, 12), down=1, head=FineConfig(8, 8, hidden=16, dropout=0.0))


def positives(box, side=24):
    found = head.assign([np.array([box], np.float32)], [(side, side)], EVERY_PIXEL)
    return int(fine.central(found.boxes[0]).sum()), len(found.places[0])


@pytest.mark.parametrize("box, middle", [((4, 4, 5, 5), 1), ((4, 4, 6, 6), 4), ((4, 4, 7, 7), 1), ((4, 4, 8, 7), 2), ((4, 4, 9, 9), 9), ((2, 2, 22, 22), 64)])
def test_the_middle_of_a_box(box, middle):
    """By hand: a side of 3 has one middle pixel, of 4 two, of 5 three (0.2 x 5 = 1), of 20 eight (0.2 x 20 = 4)."""
    assert positives(box) == (middle, (box[2] - box[0]) * (box[3] - box[1]))


def test_every_box_has_a_positive_pixel():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x, y, w, h = rng.integers(0, 12, 2).tolist() + rng.integers(1, 12, 2).tolist()
        assert positives((x, y, x + w, y + h))[0] >= 1


def test_quality_focal_by_hand():
    loss = fine.quality_focal(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert torch.allclose(loss, torch.full((2,), 0.25 * np.log(2), dtype=torch.float32))
    logit = torch.linspace(-4, 4, 81, requires_grad=True)
    for y in (0.2, 0.7):
        (slope,) = torch.autograd.grad(fine.quality_focal(logit, torch.full_like(logit, y)).sum(), logit)
        assert (slope[logit.sigmoid() > y + 0.02] > 0).all() and (slope[logit.sigmoid() < y - 0.02] < 0).all()


def test_sides_come_back_and_the_loss_is_least_at_the_truth():
    rng = torch.Generator().manual_seed(0)
    truth = torch.tensor(REACH)[torch.randint(0, 5, (64, 4), generator=rng)]
    logits = -(truth[..., None] - torch.tensor(REACH)).abs() * 30
    assert fine.measured(logits).equal(truth) and float(fine.side_loss(logits, truth).max()) < 1e-5
    assert (fine.side_loss(logits, truth + 1) > 10).all()


@pytest.mark.parametrize("distance", [0.5, 0.75, 2.0, 5.0, 7.3, 14.0])
def test_the_best_distribution_has_the_right_mean(distance):
    """Cross-entropy with shared targets is least where the mean of the distribution is the distance itself."""
    logits = torch.zeros(1, 4, 9, requires_grad=True)
    step = torch.optim.LBFGS([logits], lr=1, max_iter=200)

    def closure():
        step.zero_grad(); loss = fine.side_loss(logits, torch.full((1, 4), distance)).sum() + 1e-6 * logits.square().sum(); loss.backward(); return loss

    step.step(closure)
    mean = (logits.softmax(-1) * torch.tensor(REACH)).sum(-1)
    assert torch.allclose(mean, torch.full((1, 4), distance), atol=0.02)


def test_windows_repeat_the_border_and_views_ignore_gain_and_offset():
    torch.manual_seed(0); x = 10 * torch.rand(2, 1, 20, 17); at = [torch.tensor(v) for v in ((0, 1, 1), (0, 19, 7), (16, 0, 8))]
    padded = torch.nn.functional.pad(x, (5, 5, 5, 5), mode="replicate")
    for k, window in enumerate(fine.windows(x, *at, 11)):
        i, r, c = (int(v[k]) for v in at); assert window.equal(padded[i, 0, r:r + 11, c:c + 11])
    a, b = fine.views(x + 5, *at), fine.views(4 * x - 30, *at)
    assert a.shape == (3, 364) and torch.allclose(a[:, :-1], b[:, :-1], atol=1e-4) and (a[:, -1] < b[:, -1]).all()


@pytest.mark.parametrize("change", [dict(), dict(sky=False), dict(look=False), dict(exchange="none"), dict(exchange="static")])
def test_every_parameter_is_trained(change):
    torch.manual_seed(0)
    model = bafenet.build(dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, **change)))
    parts = training.loss_of(model, examples.batch([scenes.scene(3), scenes.scene(5)]))
    parts["total"].backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == [] and ("sky" in parts) == change.get("sky", True)


def test_masks_of_another_size_are_refused():
    model = bafenet.build(TINY).eval(); sample = scenes.scene(5); maps = model(model.normalise(torch.from_numpy(sample.image)[None]))
    full, small = torch.zeros(1, *sample.image.shape, dtype=torch.bool), torch.zeros(1, 100, 100, dtype=torch.bool)
    with pytest.raises(InputError, match=r"sky has shape \(1, 100, 100\)"): fine.fine_losses(model.bbox_head, maps, [sample.boxes], small, full)
    with pytest.raises(InputError, match=r"targets has shape \(1, 100, 100\)"): fine.fine_losses(model.bbox_head, maps, [sample.boxes], full, small)


def test_no_peak_is_over_a_threshold_of_one():
    logits = torch.randn(20, 20); assert [len(fine.peaks(logits, t, 1000)[0]) > 0 for t in (0.0, 0.5, 1.0)] == [True, True, False]


def test_weights_of_boxes_count_in_the_class_loss_alone():
    torch.manual_seed(0); model = bafenet.build(TINY).eval(); sample = scenes.scene(5)
    maps = model(model.normalise(torch.from_numpy(sample.image)[None])); masks = [torch.from_numpy(m)[None] for m in (sample.sky, sample.targets)]
    first = torch.zeros(len(sample.boxes)); first[0] = 1
    none, one, two, three = (fine.fine_losses(model.bbox_head, maps, [sample.boxes], *masks, w) for w in (None, first * 0 + 1, first + 1, 2 * first + 1))
    share = two["class"] - one["class"]          # what the first target's locations give
    assert none["class"] == one["class"] and share > 0 and torch.allclose(three["class"] - two["class"], share, rtol=1e-3)
    assert all(none[k] == three[k] for k in ("box", "mask", "sky"))


def test_losses_of_nothing_are_finite_and_a_mismatch_is_said():
    model = bafenet.build(TINY); sample = scenes.scene(3)
    empty = dataclasses.replace(sample, boxes=sample.boxes[:0], real=sample.real[:0], targets=sample.targets & False)
    parts = training.loss_of(model, examples.batch([empty])); parts["total"].backward()
    assert all(torch.isfinite(v) for v in parts.values()) and parts["box"].item() == 0
    with pytest.raises(InputError, match="lists of boxes"):
        fine.fine_losses(model.bbox_head, model(torch.zeros(1, 1, 32, 32)), [], torch.zeros(1, 32, 32), torch.zeros(1, 32, 32))
    for wrong in (dict(channels=0), dict(dropout=1.0)):
        with pytest.raises(InputError): FineConfig(**wrong)


class Told:
    """A head that answers every question for a box with the same sides."""
    def __init__(self, distances): self.logits = -(torch.tensor(distances)[:, None] - torch.tensor(REACH)).abs() * 50
    def sides(self, maps, image, row, column): return self.logits.expand(len(row), 4, 9)


def test_detections_by_hand():
    classes = torch.full((1, 1, 12, 16), -9.0); classes[0, 0, 5, 7] = 2.0; classes[0, 0, 5, 8] = 1.0; classes[0, 0, 0, 15] = 0.5
    maps = FineMaps(classes, None, None, None, None)
    found = fine.fine_detections(Told((1.5, 1.5, 1.5, 0.5)), maps)
    assert found[:, :4].tolist() == [[6, 4, 9, 6], [14, 0, 16, 1]]       # the neighbour (5, 8) is no peak; the corner box is cut to the image
    sure = 1 / (1 + np.exp(-0.5 / fine.SLOPE))                            # the worth of a box that is certain
    assert np.allclose(found[:, 4], np.sqrt(sure / (1 + np.exp([-2.0, -0.5]))))
    plain = fine.fine_detections(Told((1.5, 1.5, 1.5, 0.5)), maps, likeliest=True)
    assert plain[:, :4].tolist() == found[:, :4].tolist() and np.allclose(plain[:, 4], 1 / (1 + np.exp([-2.0, -0.5])))
    assert len(fine.fine_detections(Told((1.5, 1.5, 1.5, 1.5)), maps, threshold=0.7)) == 1


def test_draws_follow_the_probabilities():
    torch.manual_seed(0); logits = torch.randn(5, 4, 9) * 2
    share = torch.stack([(fine.drawn(logits) == r).float().mean(-1) for r in REACH], -1)
    assert fine.drawn(logits).equal(fine.drawn(logits)) and (share - logits.softmax(-1)).abs().max() < 1.5 / fine.DRAWS


def test_worth_by_hand():
    d, truth = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0]])       # IoU 1, and 4 of 8 pixels
    found = fine.worth(d[None, :, None], truth.T[None])
    assert np.isclose(found.item(), (1 / (1 + np.exp(-5.0)) + 0.5) / 2)


def test_a_second_guess_covers_what_the_first_misses():
    """A target of one row, 2 or 6 pixels wide with chances 0.6 and 0.4: the first box is the narrow one, the second the wide one, and their worths are near those chances."""
    logits = torch.full((1, 4, len(REACH)), -50.0); logits[:, (1, 3), 0] = 50; logits[:, 0, 0] = 50
    logits[0, 2, 1], logits[0, 2, 5] = np.log(0.6), np.log(0.4)
    d, value = fine.worthiest(logits)
    (second, gain), (_, third) = fine.further(logits, d, 2)
    assert d[0, 2] in (1.5, 2.0) and second[0].tolist() == [0.5, 0.5, 6.0, 0.5]
    assert abs(value.item() - 0.6) < 0.1 and abs(gain.item() - 0.4) < 0.1 and third < 0.05     # the step is soft, the draws are 64
    assert fine.further(logits[:0], d[:0], 2)[1][1].shape == (0,)


def test_further_guesses_come_last_and_change_no_first_one():
    torch.manual_seed(0)
    head = fine.FineHead(fine.FineConfig(8, 8)).eval()
    with torch.inference_mode():
        maps = head(torch.randn(1, 8, 16, 16), torch.randn(1, 1, 32, 32))
        maps = maps._replace(classes=3 * torch.randn(1, 1, 32, 32))
        one, three = (fine.fine_detections(head, maps, guesses=g) for g in (1, 3))
    assert len(one) < len(three) <= 3 * len(one) and (np.diff(three[:, 4]) <= 0).all()
    first = {tuple(row) for row in one.tolist()}
    assert first <= {tuple(row) for row in three.tolist()}, "each first guess is still there"
    rest = np.array([row for row in three.tolist() if tuple(row) not in first])
    assert (rest[:, 4] >= fine.UNLIKELY).all() and (rest[:, 2:4] > rest[:, :2]).all()


def test_worthiest_moves_only_for_more_worth():
    torch.manual_seed(0); logits = torch.randn(200, 4, 9) * 2
    d, value = fine.worthiest(logits); before = fine.measured(logits); truth = fine.drawn(logits)
    assert torch.allclose(fine.worth(d[..., None], truth)[:, 0], value) and (value >= fine.worth(before[..., None], truth)[:, 0] - 1e-6).all()
    moved = (d - before).abs()
    assert (torch.isclose(moved, torch.tensor(0.0), atol=1e-6) | torch.isclose(moved, torch.tensor(fine.NUDGE))).all() and (moved > 0).any() and (d >= fine.NUDGE).all()
    empty, none = fine.worthiest(logits[:0]); assert empty.shape == (0, 4) and none.shape == (0,)


def test_folding_keeps_the_function_and_takes_the_exchange_out():
    torch.manual_seed(1); model = bafenet.build(TINY).eval()
    with torch.no_grad():
        model.bbox_head.ChannelEx.preference.normal_()
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, 0.2); m.running_var.uniform_(0.5, 2); m.weight.uniform_(0.5, 2); m.bias.normal_()
        folded, x = bafenet.fold(model), torch.randn(2, 1, 40, 52)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(model(x), folded(x)))
    assert not hasattr(folded.bbox_head.ChannelEx, "preference") and hasattr(model.bbox_head.ChannelEx, "preference")


def test_tiles_find_what_the_whole_image_shows():
    torch.manual_seed(0); model = bafenet.build(TINY).eval()
    image = np.block([[scenes.scene(3).image, scenes.scene(4).image], [scenes.scene(5).image, scenes.scene(6).image]])
    whole, cut = (evaluation.predict(model, image, bafenet.Reading(least=0.0105), tile=t, halo=64) for t in (None, 256))
    assert len(whole.detections) == len(cut.detections) and np.allclose(whole.detections, cut.detections, atol=1e-4)
    assert (whole.mask == cut.mask).mean() > 0.9999 and (whole.sky == cut.sky).mean() > 0.9999 and whole.mask.shape == image.shape


def test_weights_carry_the_fine_head(tmp_path):
    model = bafenet.build(dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, look=False)))
    bafenet.save_weights(model, tmp_path / "w.safetensors", half=True)
    again = bafenet.load_weights(tmp_path / "w.safetensors")
    assert again.preset == model.preset and isinstance(again.preset.head, FineConfig) and CENTRAL == 0.2
