"""Evaluation: native size and squeezed, tiles without seams, minus-one boxes moved back, rows and files."""
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bafe_nb import bafenet, boxes, densesirst, evaluation, fine, head, scenes, schedules, scores, training
from bafe_nb.bafenet import READINGS, Reading
from bafe_nb.boxes import InputError

COARSE = bafenet.PRESETS["bafe-small"]                                      # one location every two pixels
COARSE = dataclasses.replace(COARSE, head=dataclasses.replace(COARSE.head, target_mask=True))
BASE = bafenet.PRESETS["bafe-hr-nano"]                                      # one location a pixel
TINY = dataclasses.replace(BASE, name="tiny", widths=(8, 12), down=1, head=dataclasses.replace(BASE.head, in_channels=8, channels=8, exchange="static"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a short run on crowded scenes: a model that finds something."""
    out = tmp_path_factory.mktemp("runs") / "run"
    schedule = schedules.Schedule("short", epochs=8, batch=4, lr=1e-2, policy="one-cycle", warm_up=0.2, crop=96, paste="none", average=0.9, focus=1.0)
    training.train(training.TrainConfig(TINY, schedule, threads=1, device="cpu"), scenes.Scenes(24), out, progress=False)
    return out


def same_detections(a, b):
    """Equal but for rounding: the same scores, and each box has its like."""
    assert a.shape == b.shape and np.allclose(np.sort(a[:, 4]), np.sort(b[:, 4]), atol=1e-4)
    assert np.all(boxes.iou(a, b).max(axis=1) > 0.999) and np.all(boxes.iou(a, b).max(axis=0) > 0.999)


class Rigged(torch.nn.Module):
    """A stand-in for a network whose answer is known: it finds every pixel block brighter than 200 that starts on an even pixel."""
    def __init__(self, preset):
        super().__init__()
        self.preset, self.reading, self.anchor = preset, Reading(), torch.nn.Parameter(torch.zeros(1))

    def normalise(self, images): return images[:, None].float()

    def forward(self, x):
        stride = self.preset.head.strides[0]
        n, _, h, w = x.shape
        bright = torch.nn.functional.max_pool2d(x, stride, ceil_mode=True) > 200
        logit = torch.where(bright, 6.0, -6.0)
        wall = torch.full((n, 4, *logit.shape[-2:]), stride / 2)
        return head.Maps([logit], [wall], [torch.full_like(logit, 6.0)], [torch.cat([logit, logit], 1)])


def preset(**changes): return dataclasses.replace(COARSE, name="rigged", **changes)


def dots(height, width, places):
    image = np.full((height, width), 20, np.uint8)
    for x, y in places: image[y:y + 2, x:x + 2] = 250
    return image


def test_native_prediction_by_hand():
    image = dots(101, 75, [(10, 20), (40, 40), (74, 100)])                # odd sides: the last location hangs over the border
    p = evaluation.predict(Rigged(preset()), image)
    assert sorted(p.detections[:, :4].tolist()) == [[10, 20, 12, 22], [40, 40, 42, 42], [74, 100, 75, 101]]
    assert p.sky.shape == p.mask.shape == (101, 75) and p.sky.dtype == p.mask.dtype == bool
    assert p.mask[20:22, 10:12].all() and not p.mask[:15].any() and p.mask[100, 74]
    assert np.all(p.detections[:, 4] > 0.99) and p.detections.dtype == np.float32


def test_squeezed_prediction_is_scaled_back_and_moved_by_one():
    squeezed = preset(size=64)
    image = np.full((128, 256), 20, np.uint8); image[40:48, 80:96] = 250     # at 64 x 64: rows 20-23, columns 20-23
    p = evaluation.predict(Rigged(squeezed), image)
    assert len(p.detections) == 4
    assert np.allclose([p.detections[:, 0].min(), p.detections[:, 1].min(), p.detections[:, 2].max(), p.detections[:, 3].max()], [80, 40, 96, 48])
    moved = evaluation.predict(Rigged(squeezed), image, boxes="paper")
    assert np.allclose(moved.detections[:, :4], p.detections[:, :4] + 1) and p.sky.shape == (128, 256)
    official = Rigged(dataclasses.replace(squeezed, official=True))
    assert np.array_equal(evaluation.predict(official, image).detections, moved.detections)


@pytest.mark.parametrize("length, tile, halo", [(1000, 256, 32), (1920, 512, 64), (33, 256, 32), (513, 256, 100)])
def test_tiles_cover_a_side_once(length, tile, halo):
    parts = evaluation.tiles(length, tile, halo)
    assert [p[2] for p in parts] == [0] + [p[3] for p in parts[:-1]] and parts[-1][3] == length
    assert all(a % 32 == 0 and k % 32 == 0 and a <= k < m <= b <= length for a, b, k, m in parts)
    assert all(k - a >= min(halo, k) and b - m >= min(halo, length - m) for a, b, k, m in parts)


def test_a_target_on_a_tile_border_is_found_once():
    borders = [p[2] for p in evaluation.tiles(400, 160, 32)][1:]
    places = [(b - 2, 40) for b in borders] + [(b, 60) for b in borders] + [(100, b) for b in borders] + [(borders[0] - 2, borders[0] - 2)]
    image = dots(400, 400, places)
    whole, cut = (evaluation.predict(Rigged(preset()), image, tile=t, halo=32) for t in (None, 160))
    assert len(whole.detections) == len(places) and np.array_equal(whole.detections, cut.detections)
    assert np.array_equal(whole.mask, cut.mask) and np.array_equal(whole.sky, cut.sky)


def test_tiles_of_a_trained_model_equal_the_whole(run):
    model, _ = evaluation.read_model(run)
    image = np.block([[scenes.scene(3 * (4 * i + j)).image for j in range(3)] for i in range(3)])[:740, :]
    whole, cut = (evaluation.predict(model, image, tile=t, halo=64) for t in (None, 320))
    assert len(whole.detections) > 3
    same_detections(whole.detections, cut.detections)
    assert (whole.sky == cut.sky).mean() > 0.9999 and (whole.mask == cut.mask).mean() > 0.9999


def test_from_run_to_row_to_file(run, tmp_path):
    data = scenes.Scenes(12, split="val")
    row, found = evaluation.evaluate(run, data, progress=False)
    assert list(found) == data.names and row["preset"] == "tiny" and row["protocol"] == "corrected" and row["images"] == 12
    assert 0 <= row["map12"] <= 1 and row["sky_iou"] > 0 and row["ms_per_image"] > 0 and row["pd_mask"] is not None
    scores.write_detections(tmp_path / "d.json", found)
    again = scores.evaluate(scores.read_detections(tmp_path / "d.json", data.names), data, "corrected")
    assert again["map12"] == pytest.approx(row["map12"], abs=1e-6)
    assert json.loads(json.dumps(row)) == row
    untrained, _ = evaluation.evaluate(bafenet.build(TINY), data, progress=False)
    assert row["map12"] > untrained["map12"]
    paper, _ = evaluation.evaluate(run / "weights.safetensors", data, "paper", progress=False)
    assert paper["protocol"] == "paper" and paper["map07"] >= 0


def test_perfect_boxes_score_one_under_both_protocols():
    data = scenes.Scenes(3)
    truth = {data[i].name: evaluation.Prediction(np.c_[data[i].boxes, np.ones(len(data[i].boxes))].astype(np.float32), data[i].sky, data[i].targets) for i in range(3)}
    for protocol in ("paper", "corrected"):
        row = evaluation.score(truth, data, protocol)
        assert row["map12"] == row["recall"] == row["sky_iou"] == row["pixel_iou"] == row["pd_mask"] == 1


def test_reading_models(run, tmp_path):
    model, words = evaluation.read_model(run)
    assert not model.training and words == "corrected" and model.preset == TINY
    assert evaluation.seed_of(run) == evaluation.seed_of(run / "weights.safetensors") == 0
    bafenet.save_weights(model, tmp_path / "alone.safetensors")
    alone, words = evaluation.read_model(tmp_path / "alone.safetensors")
    assert words is None and evaluation.seed_of(tmp_path / "alone.safetensors") is None
    image = scenes.scene(0)
    assert np.array_equal(evaluation.predict(model, image).detections, evaluation.predict(alone, image.image).detections)


def test_folded_model_finds_the_same(run):
    """All logits of a short run and of the weights of the repository, and every detection of the latter. (The short run reports a peak on every ripple, where rounding decides between neighbours.)"""
    data = scenes.Scenes(4, split="val")
    for source in (run, WEIGHTS):
        model, _ = evaluation.read_model(source)
        folded = bafenet.fold(model)
        for i in range(4):
            with torch.inference_mode(): before, after = (evaluation._maps(m, data[i].image) for m in (model, folded))
            for field in ("classes", "mask", "sky"): assert torch.allclose(getattr(before, field), getattr(after, field), atol=1e-4), field
    found, ms = evaluation.predict_all(model, data, progress=False)
    for i in range(4):
        one = evaluation.predict(model, data[i]).detections
        assert len(one) > 3
        same_detections(one, found[data.names[i]].detections)


def test_bad_input_is_named(run, tmp_path):
    model, _ = evaluation.read_model(run)
    for image, words in ((np.zeros((4, 4, 3), np.uint8), "uint8 of shape"), (np.zeros((4, 4), np.float32), "float32"), (np.zeros((0, 4), np.uint8), "give grey levels")):
        with pytest.raises(InputError, match=words): evaluation.predict(model, image)
    with pytest.raises(InputError, match="is not there: give the folder of a finished run"): evaluation.read_model(tmp_path)
    with pytest.raises(InputError, match="is not there"): evaluation.read_model(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="use 'corrected' or 'paper'"): evaluation.predict(model, scenes.scene(0), boxes="file")
    with pytest.raises(InputError, match="the dataset is empty"): evaluation.predict_all(model, [], progress=False)
    with pytest.raises(InputError, match="protocol"): evaluation.evaluate(run, scenes.Scenes(1), "voc", progress=False)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match="config.json is no JSON"): evaluation.read_model(tmp_path)
    with pytest.raises(InputError, match="config.json is no JSON"): evaluation.seed_of(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["x"], "schedule": []}')     # of another library
    assert evaluation.read_model(tmp_path)[1] is None and evaluation.seed_of(tmp_path) is None and evaluation.name_of(tmp_path, model) == model.preset.name
    with pytest.raises(InputError, match="squeezes every image to 512 x 512 pixels: leave tile out"): evaluation.predict(bafenet.build("paper-r18-july").eval(), scenes.scene(0), tile=256)


def test_paper_model_on_real_images(data):
    torch.manual_seed(0)
    model = bafenet.build("paper-r18").eval()
    sample = densesirst.load(data, densesirst.names(data, "test_v2")[0])
    p = evaluation.predict(model, sample)
    assert p.sky.shape == sample.size and p.mask is None and p.detections.shape[1] == 5
    assert np.all(p.detections[:, 2] <= sample.width) and np.all(p.detections[:, :2] >= 0)


WEIGHTS = Path(__file__).parent.parent / "weights" / "bafe-hr-nano.safetensors"


@pytest.mark.parametrize("name, most", [("bafe-hr-nano", 1_000_000), ("bafe-hr", 8_000_000)])
def test_the_weights_of_the_repository_find_targets(name, most):
    path = WEIGHTS.with_name(f"{name}.safetensors")
    model, _ = evaluation.read_model(path)
    assert model.preset == bafenet.PRESETS[name] and path.stat().st_size <= most
    some = scenes.Scenes(3)
    found, _ = evaluation.predict_all(model, some, False)
    hit = [boxes.iou(s.boxes, found[s.name].detections[:, :4]).max(1, initial=0) >= 0.5 for s in some]
    assert np.concatenate(hit).mean() > 0.8, "scenes, which it never saw"


@pytest.mark.parametrize("side", [(256, 256), (201, 133)])
def test_four_looks_answer_alike_for_every_reflection(side):
    """The average over four reflections turns with the image, boxes and masks. The draws behind the box worth most do not, so the likeliest is asked for."""
    model, _ = evaluation.read_model(WEIGHTS)
    image = scenes.scene(6).image[:side[0], :side[1]]
    p = evaluation.predict(model, image, Reading(views=4), likeliest=True)
    assert len(p.detections)
    for across, down in ((True, False), (False, True), (True, True)):
        view = image[::-1] if down else image
        view = view[:, ::-1] if across else view
        q = evaluation.predict(model, view, Reading(views=4), likeliest=True)
        back = boxes.flip(q.detections[:, :4], side[1] if across else None, side[0] if down else None)
        order = np.lexsort(np.round(p.detections[:, :4].T, 2)), np.lexsort(np.round(back.T, 2))
        assert np.allclose(p.detections[order[0], :4], back[order[1]], atol=1e-2)
        assert np.allclose(p.detections[order[0], 4], q.detections[order[1], 4], atol=1e-4)
        mask = q.mask[::-1] if down else q.mask
        assert (p.mask == (mask[:, ::-1] if across else mask)).mean() > 0.9999


def test_four_looks_are_the_mean_of_four():
    model, _ = evaluation.read_model(WEIGHTS)
    image = scenes.scene(6).image[:96, :128]
    with torch.inference_mode():
        one = [evaluation._maps(model, view.of(image)) for view in evaluation.VIEWS[:4]]
        mean = evaluation.Looks([(model.bbox_head, view, maps) for view, maps in zip(evaluation.VIEWS, one)])
        turned = [m.classes.flip(view.turned) for m, view in zip(one, evaluation.VIEWS)]
        assert torch.allclose(mean.maps.classes, sum(turned) / 4, atol=1e-5)
        at = [torch.tensor([k]) for k in (0, 40, 70)]
        by_hand = model.bbox_head.sides(one[0], *at).log_softmax(-1)
        by_hand = by_hand + model.bbox_head.sides(one[1], at[0], at[1], 127 - at[2])[:, [2, 1, 0, 3]].log_softmax(-1)
        by_hand = by_hand + model.bbox_head.sides(one[2], at[0], 95 - at[1], at[2])[:, [0, 3, 2, 1]].log_softmax(-1)
        by_hand = by_hand + model.bbox_head.sides(one[3], at[0], 95 - at[1], 127 - at[2])[:, [2, 3, 0, 1]].log_softmax(-1)
        assert torch.allclose(mean.sides(mean.maps, *at), by_hand / 4, atol=1e-5)


def test_eight_looks_answer_alike_with_x_and_y_exchanged():
    model, _ = evaluation.read_model(WEIGHTS)
    image = scenes.scene(6).image[:201, :133]
    p, q = (evaluation.predict(model, view, Reading(views=8), likeliest=True) for view in (image, image.T[:, ::-1]))
    back = boxes.flip(q.detections[:, :4], 201)[:, [1, 0, 3, 2]]
    order = np.lexsort(np.round(p.detections[:, :4].T, 2)), np.lexsort(np.round(back.T, 2))
    assert len(back) and np.allclose(p.detections[order[0], :4], back[order[1]], atol=1e-2)
    assert np.allclose(p.detections[order[0], 4], q.detections[order[1], 4], atol=1e-4) and (p.mask == q.mask[:, ::-1].T).mean() > 0.9999
    assert not np.array_equal(evaluation.predict(model, image, Reading(views=4), likeliest=True).detections, p.detections)


@pytest.mark.parametrize("wrong, words", [(dict(views=3), "views is 3: use 1, 4 or 8"), (dict(guesses=0), "guesses is 0"), (dict(least=1.5), "least is 1.5"),
                                          (dict(sky_weight=-0.1), "sky_weight is -0.1"), (dict(mask_level=2), "mask_level is 2")])
def test_readings_that_cannot_be(wrong, words):
    with pytest.raises(InputError, match=words): Reading(**wrong)


def test_a_weights_file_carries_its_reading(tmp_path):
    """Without a word a model is read as its file asks; a reading given replaces the file's."""
    model, sample = bafenet.load_weights(WEIGHTS), scenes.scene(6)
    assert model.reading == Reading() == READINGS["plain"]
    plain, best = evaluation.predict(model, sample), evaluation.predict(model, sample, READINGS["best"])
    assert len(best.detections) > len(plain.detections) and best.mask.sum() < plain.mask.sum()
    model.reading = READINGS["best"]; bafenet.save_weights(model, tmp_path / "best.safetensors", half=True)
    again = bafenet.load_weights(tmp_path / "best.safetensors")
    assert again.reading == bafenet.fold(again).reading == READINGS["best"]
    assert np.array_equal(evaluation.predict(again, sample).detections, best.detections) and np.array_equal(evaluation.predict(again, sample, Reading()).detections, plain.detections)
    row, _ = evaluation.evaluate(tmp_path / "best.safetensors", scenes.Scenes(1), progress=False)
    assert row["preset"] == "bafe-hr-nano, eight reflections, 3 guesses, from 0.02, masks over 0.5"


def test_the_headline_weights_ask_to_be_read_best():
    assert bafenet.load_weights(WEIGHTS.with_name("bafe-hr.safetensors")).reading == READINGS["best"]


def test_a_lower_least_score_adds_detections_and_is_named():
    few = scenes.Scenes(3); (a, found), (b, more) = (evaluation.evaluate(WEIGHTS, few, progress=False, reading=Reading(least=t)) for t in (0.05, 0.01))
    assert (a["preset"], b["preset"]) == ("bafe-hr-nano", "bafe-hr-nano, from 0.01") and sum(map(len, more.values())) > sum(map(len, found.values()))


@pytest.mark.parametrize("name", ["bafe-hr-nano", "bafe-hr"])
def test_the_default_halo_holds_all_that_a_network_sees(name):
    """Maps from tiles equal those of the whole image, with the weights of the repository."""
    model, _ = evaluation.read_model(WEIGHTS.with_name(f"{name}.safetensors"))
    image = np.concatenate([scenes.scene(k).image for k in (6, 8, 10)], 1)[:96]
    with torch.inference_mode(): whole, cut = evaluation._maps(model, image), evaluation._stitched(model, image, 2 * evaluation.HALO + 64, evaluation.HALO)
    for field in ("classes", "mask", "sky", "features"): assert torch.allclose(getattr(whole, field), getattr(cut, field), atol=2e-4), field


def test_only_fine_heads_look_four_times():
    model = bafenet.build("bafe-small").eval()
    with pytest.raises(InputError, match="bafe-small.*fine head"): evaluation.predict(model, scenes.scene(0).image, Reading(views=4))
    with pytest.raises(InputError, match="bafe-small.*guesses"): evaluation.predict(model, scenes.scene(0).image, Reading(guesses=2))
    with pytest.raises(InputError, match="bafe-small.*mask level"): evaluation.predict(model, scenes.scene(0).image, Reading(mask_level=0.5))


def test_masks_by_level_start_at_the_masks_of_predict_and_shrink():
    model, few = evaluation.read_model(Path(__file__).parent.parent / "weights" / "bafe-hr-nano.safetensors")[0], scenes.Scenes(5)
    levels = evaluation.mask_levels(model, few, progress=False)
    drawn = scores.pd_fa([evaluation.predict(model, few[i]).mask for i in range(5)], [few[i].targets for i in range(5)])
    assert levels[evaluation.LEVELS[0]] == drawn and drawn.targets == sum(len(scores.components(few[i].targets)[1]) for i in range(5))
    areas = [t.united for t in levels.values()]
    assert areas == sorted(areas, reverse=True) and areas[-1] < areas[0]
    assert evaluation.mask_levels(model, few, (0.5,), Reading(views=4), progress=False)[0.5] != levels[0.5]


def test_a_level_is_the_share_behind_the_weight_of_the_loss():
    """Rigged logits log(RARE): p is one half there, so a level just below keeps those pixels and one just above drops them."""
    class Half(torch.nn.Module):
        def __init__(self): super().__init__(); self.preset, self.reading, self.anchor, self.bbox_head = BASE, Reading(), torch.nn.Parameter(torch.zeros(1)), None
        def normalise(self, images): return images[:, None].float()
        def forward(self, x): return fine.FineMaps(x, torch.where(x > 200, float(np.log(fine.RARE)), -9.0), None, x, x)
    sample = scenes.scene(6)
    lit = dataclasses.replace(sample, image=np.where(sample.targets, 250, 20).astype(np.uint8))
    below, above = evaluation.mask_levels(Half(), [lit], (0.49, 0.51), progress=False).values()
    assert below.iou == 1 and below.pd == 1 and below.fa == 0 and above.iou == 0


def test_only_fine_heads_have_levels():
    with pytest.raises(InputError, match="bafe-small"): evaluation.mask_levels(bafenet.build("bafe-small").eval(), scenes.Scenes(1))
