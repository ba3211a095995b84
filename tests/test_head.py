"""The head: recorded outputs of the authors' code, assignment against its definition, decoding, and what must raise."""
import json

import numpy as np
import pytest
import torch

from bafe_nb import boxes as box
from bafe_nb import densesirst
from bafe_nb.boxes import InputError
from bafe_nb.head import (Head, HeadConfig, Maps, as_distances, assign, centerness, decode, distances, locations, oracle)

EVERYTHING = ((-1, 1e8),)
UNUSED = {"conv_mix", "conv_post", "conv_reduce", "conv_spatial", "conv_squeeze", "conv_squeeze_bg", "conv_squeeze_tgt", "convs_reg", "fusion_conv", "gen_weight"}


def one_level(stride, rule="nearest", **words):
    return HeadConfig(16, 16, convs=1, strides=(stride,), ranges=EVERYTHING, norm="batch", assign=rule, large_kernel=False, **words)


def random_boxes(rng, n, extent=64, low=1, high=7):
    corner = rng.uniform(0, extent - high, (n, 2)); size = rng.uniform(low, high, (n, 2))
    return np.concatenate((corner, corner + size), axis=1).astype(np.float32)


# ---- the authors' head ----

@pytest.mark.parametrize("file, words", [("head_small.pt", {}), ("head_small_july2024.pt", dict(exchange="static", large_kernel=False))])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_head_equals_the_recorded_one(golden, file, words, mode):
    recorded = torch.load(golden / file, weights_only=True)
    head = Head(HeadConfig(64, 64, **words)).train(mode == "train")
    left = head.load_state_dict(recorded["state_dict"], strict=False)
    assert not left.missing_keys and {k.split(".")[0] for k in left.unexpected_keys} == UNUSED
    maps = head([recorded[f"feat{k}"] for k in range(3)])
    for field, key in zip(Maps._fields, ("cls", "bbox", "ctr", "seg")):
        for level, ours in enumerate(getattr(maps, field)):
            torch.testing.assert_close(ours, recorded[f"{mode}_{key}{level}"], atol=1e-4, rtol=0)


def test_batch_norm_is_shared_by_the_levels(golden):
    recorded = torch.load(golden / "head_small.pt", weights_only=True)
    head = Head(HeadConfig(64, 64)).train()
    head.load_state_dict(recorded["state_dict"], strict=False)
    head([recorded[f"feat{k}"] for k in range(3)])
    after = {k: v for k, v in recorded["bn_after_train_forward"].items() if k in head.state_dict()}
    assert len(after) == 12
    for name, value in after.items(): torch.testing.assert_close(head.state_dict()[name], value, atol=1e-4, rtol=0)
    assert head.convs_cls[0].layer[1].num_batches_tracked == 3


def test_names_and_shapes_are_the_authors(golden):
    lines = dict(line.split(" ", 1) for line in (golden / "head_keys_feat64.txt").read_text().splitlines())
    ours = {k: str(tuple(v.shape)) for k, v in Head(HeadConfig(64, 64)).state_dict().items()}
    assert ours == {k: v for k, v in lines.items() if k.split(".")[0] not in UNUSED}


def test_initialisation_has_the_recorded_statistics(golden):
    recorded = json.loads((golden / "init_stats_r18.json").read_text())
    torch.manual_seed(1)
    for name, value in Head(HeadConfig()).requires_grad_(False).named_parameters():
        shape, mean, std = recorded["bbox_head." + name]
        assert list(value.shape) == shape, name
        spread = float(value.std()) if value.numel() > 1 else 0.0
        slack = 6 / value.numel() ** 0.5
        assert abs(spread - std) <= 0.75 * slack * max(std, spread) + 1e-9, name
        assert abs(float(value.mean()) - mean) <= 1.5 * slack * max(std, spread) + 1e-5, name


# ---- targets ----

def test_targets_equal_the_recorded_ones(golden):
    recorded = torch.load(golden / "fcos_targets_losses.pt", weights_only=True)
    t = assign([recorded[f"gt_bboxes{k}"] for k in range(3)], [(64, 64), (32, 32), (16, 16)], HeadConfig())
    for level in range(3):
        labels = torch.ones_like(recorded[f"labels{level}"]); labels[t.places[level]] = 0
        assert torch.equal(labels, recorded[f"labels{level}"])
        torch.testing.assert_close(t.boxes[level], recorded[f"bbox_targets{level}"][t.places[level]], atol=1e-4, rtol=0)
        torch.testing.assert_close(t.centerness[level], recorded[f"centerness_pos{level}"], atol=1e-4, rtol=0)
        n = 512 // HeadConfig().strides[level]
        torch.testing.assert_close(locations(n, n, HeadConfig().strides[level]), recorded[f"points{level}"])


def naive(boxes, h, w, stride, limits):
    """FCOS's rule as written: every location against every box."""
    owner = np.full(h * w, -1)
    for n, (x, y) in enumerate(locations(h, w, stride).tolist()):
        best = np.inf
        for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            d = (x - x1, y - y1, x2 - x, y2 - y); area = (x2 - x1) * (y2 - y1)
            if min(d) > 0 and limits[0] <= max(d) <= limits[1] and area < best: best, owner[n] = area, k
    return owner


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("limits", [(-1, 1e8), (-1, 5), (5, 12)])
def test_inside_is_the_definition(stride, limits):
    rng = np.random.default_rng(stride)
    boxes = np.concatenate((random_boxes(rng, 20), random_boxes(rng, 8, high=30), np.round(random_boxes(rng, 12, low=2))))
    boxes = np.concatenate((boxes, boxes[:3]))                                # coinciding boxes: the first one owns
    n = 64 // stride
    t = assign([boxes], [(n, n)], HeadConfig(strides=(stride,), ranges=(limits,)))
    ours = np.full(n * n, -1); ours[t.places[0]] = t.owner[0]
    want = naive(boxes, n, n, stride, limits)
    assert (ours == want).all() and set(np.flatnonzero(t.reached)) == set(want[want >= 0])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_nearest_reaches_all_and_shares_nothing(stride):
    rng = np.random.default_rng(10 + stride); n = 64 // stride
    for _ in range(20):
        images = [random_boxes(rng, k, low=0.3) for k in (26, 0, 7)]
        t = assign(images, [(n, n)], one_level(stride))
        places = t.places[0].tolist()
        assert t.reached.all() and len(set(places)) == len(places)
        assert (t.places[0] // (n * n) == torch.tensor([0] * 26 + [2] * 7)[t.owner[0]]).all()      # in the right image
        best = torch.zeros(33).scatter_reduce(0, t.owner[0], t.centerness[0], "amax")
        assert torch.allclose(best, torch.ones(33)) and t.centerness[0].min() >= 0


def test_nearest_keeps_what_inside_gives_unless_a_neighbour_needs_it():
    boxes = np.array([[4, 4, 12, 12]], np.float32)
    inside, nearest = (assign([boxes], [(8, 8)], one_level(2, rule)) for rule in ("inside", "nearest"))
    assert torch.equal(inside.places[0], nearest.places[0]) and len(inside.places[0]) == 16
    assert torch.allclose(nearest.centerness[0], inside.centerness[0] / inside.centerness[0].max())


def test_nearest_does_not_depend_on_the_order_of_boxes():
    boxes = random_boxes(np.random.default_rng(3), 15, low=0.5)
    order = np.random.default_rng(4).permutation(15)
    a, b = assign([boxes], [(32, 32)], one_level(2)), assign([boxes[order]], [(32, 32)], one_level(2))
    assert torch.equal(a.places[0], b.places[0]) and np.array_equal(a.owner[0].numpy(), order[b.owner[0].numpy()])


def test_nearest_uses_one_level_per_target():
    config = HeadConfig(strides=(2, 8), ranges=((-1, 8), (8, 1e8)), assign="nearest")
    t = assign([np.array([[3, 3, 4, 4], [8, 8, 56, 56]], np.float32)], [(32, 32), (8, 8)], config)
    assert t.reached.all() and set(t.owner[0].tolist()) == {0} and set(t.owner[1].tolist()) == {1}


def test_a_full_map_leaves_targets_unreached_and_says_so():
    t = assign([np.tile([[3, 3, 5, 5]], (18, 1))], [(4, 4)], one_level(2))
    assert int(t.reached.sum()) == 16 and sorted(t.places[0].tolist()) == list(range(16))


def test_empty_boxes_and_empty_images_own_nothing():
    t = assign([np.zeros((1, 4)), [], [[5, 5, 5, 9]]], [(8, 8)], one_level(2))
    assert t.reached.tolist() == [False, False] and len(t.places[0]) == 0 and t.boxes[0].shape == (0, 4)


def test_centerness_by_hand():
    d = distances(np.array([[10, 10, 13, 14]]), np.array([[11, 11]]))
    assert d.tolist() == [[1, 1, 2, 3]] and np.isclose(centerness(d)[0], (1 / 2 * 1 / 3) ** 0.5)


# ---- decoding ----

@pytest.mark.parametrize("rescale", [0, 1])
@pytest.mark.parametrize("suppress", [0, 1])
def test_decode_equals_the_recorded_one(golden, rescale, suppress):
    r = torch.load(golden / "predict_by_feat.pt", weights_only=True)
    maps = Maps(*([r[f"{key}{k}"] for k in range(3)] for key in ("cls", "bbox", "ctr", "seg")))
    found = decode(maps, (8, 16, 32), iou=0.5 if suppress else None, size=tuple(r["img_shape"].tolist()), rescale=r["scale_factor"] if rescale else None)
    for i, ours in enumerate(found):
        name = f"rescale{rescale}_nms{suppress}_img{i}_"
        want = np.concatenate((r[name + "bboxes"], r[name + "scores"][:, None]), axis=1)
        assert ours.shape == want.shape and ours.dtype == np.float32
        np.testing.assert_allclose(ours, want, atol=1e-4, rtol=0)


def test_decode_by_hand():
    maps = Maps([torch.full((1, 1, 2, 2), -9.0)], [torch.tensor([2.0, 1, 3, 4]).view(1, 4, 1, 1).expand(1, 4, 2, 2)], [torch.full((1, 1, 2, 2), float(np.log(3)))], [])
    maps.classes[0][0, 0, 0, 1] = 0
    np.testing.assert_allclose(decode(maps, (8,))[0], [[10, 3, 15, 8, 0.375]], rtol=1e-6)
    assert decode(maps, (8,), score_threshold=0.5)[0].shape == (0, 5)
    assert len(decode(maps, (8,), score_threshold=0, iou=None)[0]) == 4


def test_decode_limits():
    rng = np.random.default_rng(0)
    maps = Maps([torch.from_numpy(rng.normal(0, 2, (2, 1, 32, 32))).float()], [torch.full((2, 4, 32, 32), 0.4)], [torch.zeros(2, 1, 32, 32)], [])
    found = decode(maps, (2,), before_nms=50, per_image=20)
    assert [len(f) for f in found] == [20, 20]
    best = maps.classes[0][0].sigmoid().flatten().sort(descending=True).values[:20] / 2
    np.testing.assert_allclose(found[0][:, 4], best, rtol=1e-5)
    assert len(decode(maps, (2,), before_nms=50, per_image=100)[0]) == 50


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_an_oracle_gives_every_box_back(stride):
    rng = np.random.default_rng(5); n = 64 // stride
    corner = np.stack(np.meshgrid(np.arange(2, 60, 12), np.arange(2, 60, 12)), -1).reshape(-1, 2) + rng.integers(0, 4, (25, 2))
    boxes = np.concatenate((corner, corner + rng.integers(1, 6, (25, 2))), axis=1).astype(np.float32)
    t = assign([boxes, boxes[:3]], [(n, n)], one_level(stride))
    found = decode(oracle(t, [(n, n)], 2), (stride,))
    for ours, want in zip(found, (boxes, boxes[:3])):
        assert sorted(map(tuple, ours[:, :4].tolist())) == sorted(map(tuple, want.tolist()))


# ---- encodings, layers, gradients ----

def test_centre_encoding_can_write_a_box_beside_its_location():
    raw = torch.tensor([-0.75, 0.25, float(np.log(0.5)), float(np.log(1.5))]).view(1, 4, 1, 1)
    torch.testing.assert_close(as_distances(raw, 2, "centre").flatten(), torch.tensor([2.0, 1.0, -1.0, 2.0]))
    torch.testing.assert_close(as_distances(raw, 2, "distance"), raw.exp())


@pytest.mark.parametrize("words", [dict(exchange="learnable"), dict(exchange="none", target_mask=True), dict(exchange="static", bottleneck=False),
                                   dict(sky=False), dict(sky=False, bottleneck=False, convs=0), dict(exchange="spatial", encoding="centre")])
def test_every_parameter_gets_a_gradient(words):
    torch.manual_seed(0)
    config = dict(in_channels=32, channels=32, convs=1, strides=(2, 4), ranges=((-1, 8), (8, 99)), norm="batch", large_kernel=words.get("sky", True))
    head = Head(HeadConfig(**(config | words)))
    maps = head([torch.randn(2, 32, 16, 16), torch.randn(2, 32, 8, 8)])
    assert len(maps.sky) == (2 if head.config.sky else 0)
    sum((m * torch.randn_like(m)).sum() for levels in maps for m in levels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_selection_of_the_dynamic_exchange_is_the_only_part_without_gradient():
    torch.manual_seed(0)
    head = Head(HeadConfig(32, 32, strides=(8,), ranges=EVERYTHING))
    sum(m.square().mean() for levels in head([torch.randn(2, 32, 16, 16)]) for m in levels).backward()
    without = {n for n, p in head.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert without == {n for n, _ in head.named_parameters() if n.startswith("ChannelEx.attention_mask")}


def test_half_precision_keeps_boxes_in_float32():
    head = Head(one_level(2))
    with torch.autocast("cpu", torch.bfloat16): maps = head([torch.randn(1, 16, 8, 8)])
    assert maps.boxes[0].dtype == torch.float32 and maps.classes[0].dtype == torch.bfloat16
    assert decode(maps, (2,), score_threshold=0)[0].dtype == np.float32


# ---- what must raise ----

@pytest.mark.parametrize("words, says", [(dict(assign="nearest", encoding="distance"), "encoding='centre'"), (dict(strides=(2,)), "one (low, high) range per stride"),
                                         (dict(channels=24), "norm='batch'"), (dict(convs=0, channels=32), "same number"), (dict(sky=False, target_mask=True), "sky=True"),
                                         (dict(exchange="swap"), "learnable"), (dict(norm="layer"), "group, batch")])
def test_a_configuration_that_cannot_be_built_is_refused(words, says):
    with pytest.raises(InputError) as error: HeadConfig(**words)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_wrong_number_of_levels_and_broken_boxes_are_refused():
    with pytest.raises(InputError, match="1 levels but got 2"): Head(one_level(2))([torch.zeros(1, 16, 4, 4)] * 2)
    with pytest.raises(InputError, match="finite"): assign([[[0, 0, float("nan"), 2]]], [(4, 4)], one_level(2))


# ---- real images ----

def test_real_clusters_are_reached_without_sharing(data):
    reached = {rule: [] for rule in ("inside", "nearest")}
    for sample in densesirst.DenseSIRST(data, "test_v2", cache=False):
        h, w = (-(-n // 2) for n in sample.image.shape)
        for rule in reached:
            t = assign([sample.boxes], [(h, w)], one_level(2, rule)); reached[rule].append(t.reached.numpy())
            assert len(set(t.places[0].tolist())) == len(t.places[0])
        found = decode(oracle(t, [(h, w)], 1), (2,), size=sample.image.shape)[0]
        assert box.iou(sample.boxes, found[:, :4]).max(axis=1).min() > 0.999
    assert np.concatenate(reached["nearest"]).all() and 0.95 < np.concatenate(reached["inside"]).mean() < 1
