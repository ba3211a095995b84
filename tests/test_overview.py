"""The overview, and the sky in the score: the network of notebook 09c, the reading of notebook 12, the finished runs asked again in notebook 23."""
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bafe_nb import background, bafenet, evaluation, examples, fine, ledger, overview, scenes, schedules, training
from bafe_nb.bafenet import Reading
from bafe_nb.boxes import InputError
from bafe_nb.densesirst import DenseSIRST

TINY = dataclasses.replace(bafenet.PRESETS["overview"], name="tiny", widths=(4, 6, 8), head=overview.OverviewConfig(4), size=32)
SCHEDULE = dataclasses.replace(schedules.SCHEDULES["overview"], epochs=1, batch=4, squeeze=32)


@pytest.fixture(scope="module")
def view():
    torch.manual_seed(0)
    return bafenet.build(TINY).eval()


@pytest.fixture(scope="module")
def root(): return Path(__file__).parents[1]


@pytest.fixture(scope="module")
def nano(root): return bafenet.fold(bafenet.load_weights(root / "weights/bafe-hr-nano.safetensors"))


def test_a_small_pixel_is_the_mean_of_those_it_stands_for():
    image = np.random.default_rng(0).integers(0, 256, (256, 512), dtype=np.uint8)
    means = image.reshape(128, 2, 128, 4).mean((1, 3))
    assert np.abs(overview.shrunk(image, 128) - means).max() <= 0.51
    assert overview.shrunk(image[:60, :80], 128).shape == (128, 128)


def test_every_parameter_is_taught_and_the_loss_falls(tmp_path):
    row = training.train(training.TrainConfig(TINY, dataclasses.replace(SCHEDULE, epochs=6), seed=0), scenes.Scenes(16), tmp_path / "run", progress=False)
    first, *_, last = (float(line.split(",")[-1]) for line in (tmp_path / "run/losses.csv").read_text().splitlines()[1:])
    assert last < first and row["preset"] == "tiny" and set(row) >= {"loss_sky", "loss_total"} and "loss_class" not in row
    model = evaluation.read_model(tmp_path / "run")[0]
    assert model.preset == TINY and not model.preset.detects
    out = overview.overview_losses(model(torch.randn(2, 1, 32, 32)), torch.rand(2, 32, 32) > 0.5)["total"]
    out.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_weights_of_an_overview_come_back(view, tmp_path):
    bafenet.save_weights(view, tmp_path / "w.safetensors")
    again = bafenet.load_weights(tmp_path / "w.safetensors")
    x = torch.randn(1, 1, 32, 32)
    assert isinstance(again.preset.head, overview.OverviewConfig) and torch.equal(again(x), view(x))


def test_parts_of_an_image_keep_sky_and_boxes_in_step():
    sample = scenes.scene(7)
    sample = dataclasses.replace(sample, sky=sample.image > np.median(sample.image))
    sizes = set()
    for seed in range(8):
        part = examples.some_part(sample, 0.6, np.random.default_rng(seed))
        sizes.add(part.image.shape)
        assert 0.6 * sample.height - 1 <= part.height <= sample.height and part.sky.shape == part.image.shape == part.targets.shape
        assert (part.sky == (part.image > np.median(sample.image))).all()
        assert (part.boxes >= 0).all() and (part.boxes[:, 2] <= part.width).all() and (part.boxes[:, 3] <= part.height).all()
    assert len(sizes) == 8 and any(h != w for h, w in sizes)


@pytest.mark.parametrize("part", [0.0, -0.5, 1.5])
def test_a_part_that_cannot_be_is_refused(part):
    with pytest.raises(InputError, match="part is"): dataclasses.replace(SCHEDULE, part=part)


def test_an_overview_says_sky_and_finds_nothing(view):
    sample = scenes.scene(3)
    said = evaluation.predict(view, sample)
    assert said.detections.shape == (0, 5) and said.mask is None and said.sky.shape == sample.image.shape
    assert np.array_equal(said.sky, evaluation.sky_share(view, sample) > 0.5)
    mirrored = evaluation.sky_share(view, sample.image[:, ::-1].copy())
    assert np.allclose(mirrored[:, ::-1], evaluation.sky_share(view, sample), atol=1e-5), "the image and its mirror image are asked alike"
    with pytest.raises(InputError, match="finds no targets"): evaluation.predict(view, sample, Reading(sky_weight=0.5))


def test_a_row_of_an_overview_has_no_scores_of_targets(view):
    row, found = evaluation.evaluate(view, scenes.Scenes(3), progress=False)
    assert set(row) == {"preset", "images", "sky_iou", "ms_per_image"} and all(len(d) == 0 for d in found.values())


def test_scores_are_weighed_by_hand():
    d = np.array([[0, 0, 2, 2, 0.9], [4, 4, 6, 6, 0.8], [8, 0, 12, 2, 0.7]], np.float32)
    sky = torch.full((8, 10), float(np.log(3)))          # 0.75 everywhere
    sky[4:] = -1000.0
    assert np.allclose(evaluation.weighed(d, sky, 0.4)[:, 4], [0.81, 0.63, 0.48])
    assert np.allclose(evaluation.weighed(d, sky, 0.4)[:, 0], [0, 8, 4]), "by falling score, boxes with their scores"
    assert np.allclose(evaluation.weighed(d, sky, 1.0)[:, 4], [0.675, 0.525, 0.0])
    assert d[1, 4] == np.float32(0.8), "the given array is left alone"


@pytest.mark.parametrize("level", evaluation.LEVELS)
def test_masks_without_a_say_of_the_sky_are_those_of_the_level(level):
    logits = torch.randn(20, 30) * 4
    share = torch.sigmoid(logits - np.log(fine.RARE))
    sky = torch.randn(20, 30) * 3
    assert np.array_equal(evaluation.over(logits, None, 0, level), (share > level).numpy())
    assert np.array_equal(evaluation.over(logits, sky, 0.7, level), (share * (0.3 + 0.7 * sky.sigmoid()) > level).numpy())


def test_the_sky_of_branch_and_overview_are_added(nano, view):
    sample = scenes.scene(11)
    logit = lambda p: torch.logit(torch.from_numpy(p).double(), eps=1e-12)
    both = logit(evaluation.sky_share(nano, sample)) + logit(evaluation.sky_share(view, sample))
    assert np.allclose(both.sigmoid().numpy(), evaluation.sky_share(nano, sample, view), atol=1e-4)
    plain, asked = evaluation.predict(nano, sample), evaluation.predict(nano, sample, Reading(sky_weight=0.7), overview=view)
    assert len(plain.detections) == len(asked.detections) > 0
    assert np.array_equal(np.unique(plain.detections[:, :4], axis=0), np.unique(asked.detections[:, :4], axis=0)), "no box is lost or moved"
    assert asked.detections[:, 4].sum() < plain.detections[:, 4].sum() and np.array_equal(asked.sky, evaluation.sky_share(nano, sample, view) > 0.5)
    assert not (asked.mask & ~plain.mask).any(), "a mask can only shrink"


def test_any_detector_can_ask_an_overview(view):
    torch.manual_seed(0)
    model = bafenet.build("bafe-small").eval()
    sample = scenes.scene(5)
    asked, plain = (evaluation.predict(model, sample, Reading(least=0.001, sky_weight=w), overview=net) for w, net in ((1.0, view), (0.0, None)))
    p = evaluation.sky_share(model, sample, view)
    x, y = ((plain.detections[:, :2] + plain.detections[:, 2:4]) / 2).astype(int).T
    assert len(plain.detections) and np.allclose(np.sort(plain.detections[:, 4] * p[y, x]), np.sort(asked.detections[:, 4]), atol=1e-6)


def test_only_an_overview_is_asked(nano):
    with pytest.raises(InputError, match="is no overview"): evaluation.predict(nano, scenes.scene(1), overview=nano)


def test_nobody_to_ask_is_said(view):
    torch.manual_seed(0)
    head = dataclasses.replace(bafenet.PRESETS["bafe-hr-nano"].head, sky=False, exchange="none")
    model = bafenet.build(dataclasses.replace(bafenet.PRESETS["bafe-hr-nano"], head=head)).eval()
    with pytest.raises(InputError, match="no sky branch"): evaluation.predict(model, scenes.scene(1), Reading(sky_weight=0.5))
    assert evaluation.predict(model, scenes.scene(1), Reading(sky_weight=0.5), overview=view).sky is not None


def test_levels_with_the_sky_are_those_of_the_masks(nano, view):
    few = scenes.Scenes(3)
    levels = evaluation.mask_levels(nano, few, reading=Reading(sky_weight=0.7), progress=False, overview=view)
    masks = [evaluation.predict(nano, few[i], Reading(sky_weight=0.7), overview=view).mask for i in range(3)]
    assert levels[evaluation.LEVELS[0]] == evaluation.scores.pd_fa(masks, [few[i].targets for i in range(3)])


def test_the_reading_is_in_the_name(view):
    words = evaluation.in_words(Reading(views=8, guesses=3, least=0.02, sky_weight=0.7), view)
    assert words == ", eight reflections, 3 guesses, from 0.02, sky 0.7, overview" and evaluation.in_words(Reading()) == ""


def test_weights_of_the_repository_tell_sky(root, data):
    """The shipped overview beats the branch on the real images at hand by a wide margin."""
    view, nano = (bafenet.fold(bafenet.load_weights(root / f"weights/{name}.safetensors")) for name in ("overview", "bafe-hr-nano"))
    held_out = DenseSIRST(data, "test_v2")
    samples = [held_out[i] for i in range(min(24, len(held_out)))]
    right = lambda *who: np.mean([((evaluation.sky_share(*who[:1], s, *who[1:]) > 0.5) == s.sky).mean() for s in samples])
    assert right(nano, view) > 0.85 and right(view) > 0.85


def test_finished_runs_are_asked_again(tmp_path, monkeypatch, view):
    """Two arms with one finished run each are read once, a second call adds nothing, and pairs appear."""
    test = scenes.Scenes(4, split="test")
    monkeypatch.setattr(background, "DenseSIRST", lambda root, split: test)
    monkeypatch.setattr(background, "called", lambda data: "scenes")
    bafenet.save_weights(view, tmp_path / "view.safetensors")
    for arm in ("default", "no sky branch"):
        torch.manual_seed(1)
        model = bafenet.build(background.preset_of(next(a for a in background.ARMS if a.name == arm)))
        bafenet.save_weights(model, tmp_path / "runs" / f"{arm.replace(' ', '-')}-0" / "weights.safetensors")
    for _ in range(2): background.ask("nowhere", tmp_path / "view.safetensors", tmp_path / "runs", tmp_path, progress=False)
    rows = ledger.read(tmp_path / "ledger.csv")
    assert sorted(r["arm"] for r in rows if r["protocol"] == "paper") == sorted(a.name for a in background.ASKED) and len(rows) == 6
    assert {c["what"] for c in background.comparisons(rows, tmp_path)} == {"sky branch, both asked"}
    bafenet.save_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no overview"): background.ask("nowhere", tmp_path / "other.safetensors", tmp_path / "runs", tmp_path)
