"""Ensembles: the mean of what networks say, whatever their order, and one line for what cannot be read together."""
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bafe_nb import bafenet, boxes, ensemble, evaluation, scenes
from bafe_nb.bafenet import READINGS, Reading
from bafe_nb.boxes import InputError

WEIGHTS = Path(__file__).parents[1] / "weights"
NANO, LARGE = WEIGHTS / "bafe-hr-nano.safetensors", WEIGHTS / "bafe-hr.safetensors"


@pytest.fixture(scope="module")
def pair(): return ensemble.read([NANO, LARGE])


@pytest.fixture(scope="module")
def sample(): return scenes.scene(6)


def maps_of(model, image, views=1):
    with torch.inference_mode(): return evaluation._looked(model, image, None, evaluation.HALO, views)


@pytest.mark.parametrize("views", (1, 4))
def test_maps_and_sides_are_means_over_the_members(pair, sample, views):
    head, maps = maps_of(pair, sample.image, views)
    alone = [maps_of(member, sample.image, views) for member in pair.members]
    for field in ("classes", "mask", "sky"):
        mean = sum(getattr(m, field) for _, m in alone) / 2
        assert torch.allclose(getattr(maps, field), mean, atol=1e-4), field
    row, column = torch.tensor([20, 64, 33]), torch.tensor([30, 22, 41])
    with torch.inference_mode():
        sides = head.sides(maps, torch.zeros(3, dtype=torch.long), row, column)
        theirs = [h.sides(m, torch.zeros(3, dtype=torch.long), row, column) for h, m in alone]
    if views == 1: theirs = [t.log_softmax(-1) for t in theirs]              # several views give log-probabilities, one view logits
    assert torch.allclose(sides, sum(theirs) / 2, atol=1e-4)


def test_a_network_with_itself_is_itself(sample):
    twice = ensemble.read([NANO, NANO, NANO])
    for reading in (Reading(), READINGS["best"]):
        a, b = evaluation.predict(twice, sample, reading), evaluation.predict(twice.members[0], sample, reading)
        assert a.detections.shape == b.detections.shape and np.allclose(a.detections, b.detections, atol=1e-4)
        assert (a.sky != b.sky).mean() < 1e-4 and (a.mask != b.mask).mean() < 1e-4
    assert twice.preset.name == "bafe-hr-nano, 3 together" and twice.reading == Reading()


def test_the_order_changes_the_name_and_the_reading_alone(pair, sample):
    turned = ensemble.read([LARGE, NANO])
    assert (pair.preset.name, turned.preset.name) == ("bafe-hr-nano + bafe-hr", "bafe-hr + bafe-hr-nano") and (pair.reading, turned.reading) == (Reading(), READINGS["best"])
    a, b = (evaluation.predict(m, sample, Reading(guesses=3)).detections for m in (pair, turned))
    assert a.shape == b.shape and np.allclose(np.sort(a[:, 4]), np.sort(b[:, 4]), atol=1e-4) and boxes.iou(a, b).max(1).min() > 0.999


def test_folding_reaches_every_member(pair, sample):
    folded = bafenet.fold(pair)
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms and any(isinstance(m, torch.nn.BatchNorm2d) for m in pair.modules())
    for a, b in zip(maps_of(pair, sample.image)[1][:3], maps_of(folded, sample.image)[1][:3]): assert torch.allclose(a, b, atol=1e-3)


def test_the_sky_is_that_of_the_members_that_have_one(sample):
    blind = bafenet.build(dataclasses.replace(bafenet.PRESETS["bafe-hr-nano"], head=dataclasses.replace(bafenet.PRESETS["bafe-hr-nano"].head, sky=False, exchange="none"))).eval()
    seeing, _ = evaluation.read_model(NANO)
    both = ensemble.Ensemble([blind, seeing]).eval()
    assert both.preset.head.sky and np.array_equal(evaluation.predict(both, sample).sky, evaluation.predict(seeing, sample).sky)
    assert np.allclose(evaluation.sky_share(both, sample), evaluation.sky_share(seeing, sample), atol=1e-6)
    assert evaluation.predict(ensemble.Ensemble([blind, blind]).eval(), sample).sky is None


def test_large_images_are_taken_in_tiles_by_every_member(pair):
    image = np.concatenate([scenes.scene(k).image[:160, :160] for k in (3, 4, 5)], 1)
    maps = [maps_of(member, image)[1].classes for member in pair.members]
    with torch.inference_mode(): tiled = [evaluation._seen(member, image, 448, 192).classes for member in pair.members]
    with torch.inference_mode(): together = evaluation._looked(pair, image, 448, 192, 1)[1].classes
    assert torch.allclose(together, sum(tiled) / 2, atol=1e-5) and together.shape == maps[0].shape


@pytest.mark.parametrize("sources, said", [([NANO], "ensemble of 1"), ([], "ensemble of 0"), ([NANO, WEIGHTS / "overview.safetensors"], "no fine head"), ([NANO, "gone"], "gone is not there")])
def test_what_cannot_be_read_together_is_refused(sources, said):
    with pytest.raises(InputError, match=said): ensemble.read(sources)


def test_minus_one_boxes_are_refused(tmp_path):
    run = tmp_path / "run"; run.mkdir()
    (run / "weights.safetensors").write_bytes(NANO.read_bytes())
    (run / "config.json").write_text(json.dumps(dict(schedule=dict(boxes="paper"))))
    with pytest.raises(InputError, match="minus-one boxes"): ensemble.read([NANO, run])
