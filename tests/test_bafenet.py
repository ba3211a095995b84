"""Presets, counts against the authors' numbers, gradients, the authors' checkpoints and the suite's own weights."""
import json
import math
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bafe_nb import bafenet, examples, scenes, schedules, training
from bafe_nb.bafenet import NEVER_TRAINED, PRESETS, UNUSED, build, count, fold, import_official, load_official, load_weights, save_weights
from bafe_nb.boxes import InputError

DTYPES = {"torch.float16": torch.float16, "torch.float32": torch.float32, "torch.int64": torch.int64}


def recorded_names(golden):
    """Name -> (shape, dtype) in the authors' R18 checkpoint."""
    table = {}
    for line in (golden / "r18_state_keys.txt").read_text().splitlines():
        name, rest = line.split(" ", 1)
        shape, dtype = rest.rsplit(" ", 1)
        table[name] = (tuple(int(n) for n in shape.strip("()").split(",") if n.strip()), DTYPES[dtype])
    return table


def noise(shape, dtype, seed):
    """Reproducible values; variances must be positive, so all are."""
    value = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    return (value * 5).to(dtype) if dtype == torch.int64 else value.to(dtype)


def authors_state(golden, july=False):
    """A state_dict with exactly the authors' names, shapes and dtypes, in either release."""
    table = recorded_names(golden)
    if july:
        table = {k: v for k, v in table.items() if "LSKModule" not in k and "ChannelEx" not in k}
        for name, shape in (("fc1.weight", (64, 1)), ("fc1.bias", (64,)), ("fc2.weight", (1, 64)), ("fc2.bias", (1,))):
            table[f"bbox_head.ChannelEx.mlp_exchange.{name}"] = (shape, torch.float16)
    state = OrderedDict((k, noise(shape, dtype, i)) for i, (k, (shape, dtype)) in enumerate(table.items()))
    state._metadata = OrderedDict(version=1)
    return state


@pytest.mark.parametrize("preset, parameters, operations", [("paper-r18", 22_562_873, 60_179_697_664), ("paper-r50", 35_582_521, 71_639_322_624)])
def test_counts_equal_the_authors(golden, preset, parameters, operations):
    recorded = json.loads((golden / "params_flops.json").read_text())[f"{preset[-2:]}_changer"]
    n, m, table = count(preset)
    assert (n, m) == (parameters, operations) == (recorded["total"], recorded["flops"]["tensor-mode"][0])
    assert table["backbone"]["parameters"] == recorded["per"]["backbone"][0] and table["neck"]["parameters"] == recorded["per"]["neck"][0]
    heads = {k.split(".")[1]: v for k, v in table.items() if k.startswith("bbox_head")}
    for part, (size, used) in recorded["head"].items():
        if size: assert heads[part]["parameters"] == size and heads[part]["unused"] == (size if used == "UNUSED" else 0), part


def test_july_counts_equal_the_leaderboard(golden):
    recorded = json.loads((golden / "july_head_params.json").read_text())
    n, m, table = count("paper-r18-july")
    assert n == 22_309_550 and round(m / 1e9, 3) == 57.654
    heads = {k.split(".")[1]: v for k, v in table.items() if k.startswith("bbox_head")}
    assert {k: v["parameters"] for k, v in heads.items()} == {k: size for k, (size, _) in recorded.items() if size}


def test_plain_fcos_counts_equal_the_leaderboard():
    n, m, table = count("fcos-r50")
    assert n == 32_113_227 and round(m / 1e9, 3) == 50.291
    assert table["neck"]["parameters"] == (512 + 1024 + 2048 + 3) * 256 + 5 * 590_080 and not any(row["unused"] for row in table.values())
    assert not [k for k in table if any(word in k for word in ("seg", "LSK", "ChannelEx", "convs_cls"))] and bafenet.unused("fcos-r50") == {}


def test_count_leaves_random_numbers_alone_and_scales():
    torch.manual_seed(5); before = torch.random.get_rng_state()
    small, large = count("bafe-hr-nano", 128), count("bafe-hr-nano", 256)
    assert torch.equal(before, torch.random.get_rng_state())
    assert large[1] == 4 * small[1] and large[0] == small[0] == sum(p.numel() for p in build("bafe-hr-nano").parameters())


def test_operations_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.Upsample(scale_factor=2)).eval()
    with torch.no_grad(), bafenet.Counting(model) as counting: model(torch.zeros(3, 2, 8, 8))
    assert dict(counting.cost) == {"0": 3 * 6 * 16 * 9, "1": 2 * 3 * 6 * 16, "2": 5 * 3 * 6 * 16, "3": 3 * 6 * 64}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_unused_names_are_the_authors(golden):
    table, mine = recorded_names(golden), build("paper-r18").state_dict()
    counters = ("running_mean", "running_var", "num_batches_tracked")
    assert {k: v[0] for k, v in table.items() if k not in mine and not k.endswith(counters)} == UNUSED
    assert all(tuple(v.shape) == table[k][0] for k, v in mine.items())
    assert sum(math.prod(s) for s in UNUSED.values()) == 850_339 and bafenet.unused("bafe-hr") == {} and bafenet.unused("paper-r50") is UNUSED


def test_initial_statistics_of_every_parameter(golden):
    torch.manual_seed(11)
    mine = dict(build("paper-r18").named_parameters())
    expected = {k: v for k, v in json.loads((golden / "init_stats_r18.json").read_text()).items() if k not in UNUSED}
    assert set(mine) == set(expected)
    for name, (shape, mean, std) in expected.items():
        value = mine[name].detach(); error = 8 * std / value.numel() ** 0.5 + 1e-6
        assert list(value.shape) == shape and abs(value.mean() - mean) <= error and abs(value.std(correction=0) - std) <= error, name


def awake(model):
    """The model in training mode with no batch norm at zero, as after pretraining."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.ones_(m.weight)
    return model.train()


@pytest.mark.parametrize("preset, size", [("paper-r18", 128), ("paper-r18-july", 128), ("fcos-r50", 256), ("bafe-small", 128)])      # the fine heads': tests/test_fine.py
def test_gradient_reaches_all_but_the_never_trained(preset, size):
    torch.manual_seed(2)
    model = awake(build(preset))
    maps = model(torch.randn(2, model.preset.in_channels, size, size))
    sum(v.float().square().mean() for part in maps for v in part).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)]
    assert tuple(silent) == (NEVER_TRAINED if model.preset.head.exchange == "dynamic" else ())
    if preset == "paper-r18":
        assert sum(dict(model.named_parameters())[n].numel() for n in NEVER_TRAINED) + 850_339 == 968_809


@pytest.mark.parametrize("preset, size", [("paper-r18", 512), ("paper-r18-july", 128), ("fcos-r50", 256), ("bafe-small", 128)])
def test_maps_of_a_level_and_the_same_every_time(preset, size):
    model = build(preset).eval(); x = torch.randn(1, model.preset.in_channels, size, size)
    with torch.inference_mode(): once = model(x); again = once if size == 512 else model(x)
    assert len(once.sky) == (len(once.classes) if model.preset.head.sky else 0)
    for part in ("classes", "boxes", "centerness", "sky"):
        channels = 4 if part == "boxes" else 1
        for stride, a, b in zip(model.preset.head.strides, getattr(once, part), getattr(again, part)):
            assert a.shape == (1, channels, size // stride, size // stride) and torch.equal(a, b) and torch.isfinite(a).all()


def test_presets_build_unknown_ones_do_not():
    for name in PRESETS:
        with bafenet.FakeTensorMode(): assert build(name).preset is PRESETS[name]
    changed = replace(PRESETS["bafe-small"], name="mine", widths=(24, 40))
    assert build(changed).backbone.channels == (24,)
    with pytest.raises(InputError, match="unknown preset 'nope': use one of .*paper-r18-july.*bafe-small"): build("nope")
    with pytest.raises(InputError, match="backbone 'vgg'"): build(replace(changed, backbone="vgg"))


def test_normalise_by_hand():
    image = np.array([[[0, 255], [7, 100]]], np.uint8)
    paper, small = build("paper-r18"), build("bafe-small")
    expected = np.stack([image[0] - m for m in (102.9801, 115.9465, 122.7717)])
    image.flags.writeable = False
    assert np.allclose(paper.normalise(image)[0].numpy(), expected, atol=1e-4)
    assert np.allclose(small.normalise(torch.tensor(image.copy()))[0, 0].numpy(), (image[0] - 99.8) / 59.3, atol=1e-5)
    for wrong in (image[0], image.astype(np.float32), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)):
        with pytest.raises(InputError, match="uint8 grey levels"): paper.normalise(wrong)


@pytest.fixture
def foreign(monkeypatch):
    """Classes of a library that is there when a checkpoint is written and gone when it is read."""
    module = types.ModuleType("absent_engine")
    for name, base in (("ConfigDict", dict), ("HistoryBuffer", object), ("Ring", list)):
        setattr(module, name, type(name, (base,), {"__module__": "absent_engine"}))
    monkeypatch.setitem(sys.modules, "absent_engine", module)
    def forget(): sys.modules.pop("absent_engine")
    return module, forget


@pytest.mark.parametrize("july, preset", [(False, "paper-r18"), (True, "paper-r18-july")])
def test_official_checkpoint(golden, tmp_path, foreign, july, preset):
    engine, forget = foreign
    state = authors_state(golden, july)
    history = engine.HistoryBuffer(); history.values = np.arange(5.); history.ring = engine.Ring([1, history])
    torch.save({"meta": {"cfg": engine.ConfigDict(a=1), "time": np.float64(3), "names": {"a", "b"}}, "message_hub": {"loss": history, "dtype": np.dtype("f4")},
                "state_dict": state, "param_schedulers": [engine.ConfigDict()]}, tmp_path / "epoch_20.pth")
    forget()
    model = load_official(tmp_path / "epoch_20.pth")
    assert model.preset == PRESETS[preset] and not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].float() if state[name].is_floating_point() else state[name]), name
        assert value.dtype == (torch.float32 if state[name].is_floating_point() else torch.int64)
    left_out = import_official(tmp_path / "epoch_20.pth", tmp_path / "w.safetensors")
    assert set(left_out) == set(state) - set(model.state_dict())
    assert {k.rsplit(".", 1)[0] for k in left_out} == {k.rsplit(".", 1)[0] for k in UNUSED}
    again = load_weights(tmp_path / "w.safetensors")
    assert again.preset == PRESETS[preset] and "absent_engine" not in sys.modules
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_plain_state_dict_and_depth(tmp_path):
    torch.manual_seed(0); theirs = build("paper-r50")
    torch.save({f"module.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "plain.pth")
    model = load_official(tmp_path / "plain.pth")
    assert model.preset.name == "paper-r50" and torch.equal(model.bbox_head.conv_cls.weight, theirs.bbox_head.conv_cls.weight)
    assert bafenet.infer_preset({"backbone.layer1.0.conv3.weight", "bbox_head.ChannelEx.mlp_exchange.fc1.weight"}, "x").name == "paper-r50-july"


def test_plain_fcos_learns_from_scenes():
    """Steps of the paper's schedule at a quarter of its side: every loss finite, no sky loss, the total falls; every trained weight moves."""
    schedule = replace(schedules.SCHEDULES["paper"], squeeze=128, warm_up=0)
    data = scenes.Scenes(2, seed=3)
    run = training.Run(training.TrainConfig("fcos-r50", schedule), examples.Examples(data, schedule, 0))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    ready = examples.batch([run.examples[0, k] for k in range(2)])
    assert sum(map(len, ready.boxes)) > 0
    for _ in range(4): training.advance(run, ready)
    losses = [{k: float(v) for k, v in parts.items()} for *_, parts in run.waiting]
    assert set(losses[0]) == {"class", "box", "centerness", "total"} and all(math.isfinite(v) for parts in losses for v in parts.values())
    assert losses[-1]["total"] < losses[0]["total"]
    assert all(not torch.equal(p, before[n]) for n, p in run.model.named_parameters() if p.ndim > 1)


def test_plain_fcos_checkpoint_of_mmdet(tmp_path):
    torch.manual_seed(4); theirs = build("fcos-r50")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "fcos.pth")
    model = load_official(tmp_path / "fcos.pth")
    assert model.preset.name == "fcos-r50" and torch.equal(model.neck.fpn_convs[4].conv.weight, theirs.neck.fpn_convs[4].conv.weight)
    save_weights(model, tmp_path / "fcos.safetensors", half=True)
    assert load_weights(tmp_path / "fcos.safetensors").preset == PRESETS["fcos-r50"]


def test_damaged_and_other_checkpoints_name_file_and_mend(tmp_path, golden):
    state = authors_state(golden)
    torch.save({"state_dict": {"a": torch.rand(1000)}}, tmp_path / "good.pth"); whole = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:len(whole) // 2]); (tmp_path / "empty.pth").write_bytes(b"")
    at = len(whole) // 2; (tmp_path / "flipped.pth").write_bytes(whole[:at] + bytes(64) + whole[at + 64:])
    torch.save({"a": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save([1, 2, 3], tmp_path / "list.pth"); torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    torch.save({k: v for k, v in state.items() if k != "neck.fpn_convs.0.conv.bias"}, tmp_path / "lacks.pth")
    torch.save({**state, "neck.extra": torch.ones(1)}, tmp_path / "unknown.pth")
    torch.save({**state, "backbone.conv1.weight": torch.ones(1)}, tmp_path / "shape.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive: archive.writestr("a.txt", "b")
    words = dict(cut="cut off", empty="cut off", flipped="cut off", old="torch 1.6", list="no weights", nothing="no weights", lacks="lacks neck.fpn_convs.0.conv.bias",
                 unknown="unknown neck.extra", shape="another shape of backbone.conv1.weight", zip="no data.pkl", absent="No such file")
    for name, word in words.items():
        with pytest.raises(InputError, match=word) as error: import_official(tmp_path / f"{name}.pth", tmp_path / "out.safetensors")
        assert str(tmp_path / f"{name}.pth") in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_round_trip(tmp_path):
    torch.manual_seed(4)
    model = awake(build("bafe-small"))
    model(torch.randn(2, 1, 64, 64)); model.backbone.stem[1].running_var[0] = 1e6      # beyond float16
    save_weights(model, tmp_path / "deep" / "w.safetensors"); save_weights(model, tmp_path / "half.safetensors", half=True)
    same, near = load_weights(tmp_path / "deep" / "w.safetensors"), load_weights(tmp_path / "half.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name
        assert torch.allclose(near.state_dict()[name].float(), value.float(), rtol=1e-3, atol=1e-6) and near.state_dict()[name].dtype == value.dtype, name
    assert same.preset == model.preset and not same.training
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "deep" / "w.safetensors").stat().st_size
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["half.safetensors", "w.safetensors"]


def test_wrong_weights_name_file_and_mend(tmp_path):
    from safetensors.torch import save_file
    save_weights(build("bafe-small"), tmp_path / "w.safetensors"); whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:len(whole) // 2]); (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "json.safetensors", {"preset": "{"})
    save_file({"a": torch.ones(1)}, tmp_path / "fields.safetensors", {"preset": '{"name": "a", "head": {"wings": 2}}'})
    fields = bafenet.dataclasses.asdict(PRESETS["bafe-hr"])
    save_file({"a": torch.ones(1)}, tmp_path / "lacks.safetensors", {"preset": json.dumps(fields)})
    words = dict(cut="cannot read weights", text="cannot read weights", plain="names no preset", json="preset cannot be read", fields="preset cannot be read",
                 lacks="not the weights of bafe-hr: it lacks", absent="cannot read weights")
    for name, word in words.items():
        with pytest.raises(InputError, match=word) as error: load_weights(tmp_path / f"{name}.safetensors")
        assert str(tmp_path / f"{name}.safetensors") in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write weights"): save_weights(build("bafe-small"), tmp_path / "file" / "w.safetensors")


@pytest.mark.parametrize("preset", ["bafe-small", "bafe-hr", "paper-r18"])
def test_folding_keeps_the_function(preset):
    torch.manual_seed(6)
    model = awake(build(preset)); x = torch.randn(1, model.preset.in_channels, 96, 96)
    with torch.inference_mode():
        if preset != "paper-r18": model(torch.randn(4, model.preset.in_channels, 96, 96))     # running statistics that differ from 0 and 1
        model.eval(); before = {k: v.clone() for k, v in model.state_dict().items()}
        folded = fold(model); pairs = [(a, b) for p, q in zip(model(x), folded(x)) for a, b in zip(p, q)]
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_real_image_runs(data):
    from bafe_nb import densesirst
    sample = densesirst.load(data, "S4_43"); model = build("bafe-small").eval()
    with torch.inference_mode(): maps = model(model.normalise(sample.image[None]))
    assert maps.sky[0].shape == (1, 1, -(-sample.height // 2), -(-sample.width // 2)) and torch.isfinite(maps.classes[0]).all()
