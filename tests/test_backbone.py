"""Backbones: shapes, names, the authors' counts and initial statistics, ImageNet weights from a file and from a server."""
import functools
import hashlib
import http.server
import json
import threading

import pytest
import torch
from torch import nn

from bafe_nb.backbone import FPN, IMAGENET, ResNet, UNet, load_imagenet
from bafe_nb.boxes import InputError


def recorded(golden):
    """Name -> (shape, mean, standard deviation) after the authors' initialisation, backbone and neck only."""
    table = json.loads((golden / "init_stats_r18.json").read_text())
    return {k: v for k, v in table.items() if not k.startswith("bbox_head.")}


def test_names_and_shapes_are_the_authors(golden):
    lines = [line.split(" ", 1) for line in (golden / "r18_state_keys.txt").read_text().splitlines()]
    theirs = {name: shape.rsplit(" ", 1)[0] for name, shape in lines}
    resnet, neck = ResNet(18), FPN((128, 256, 512))
    mine = {f"{part}.{k}": str(tuple(v.shape)) for part, m in (("backbone", resnet), ("neck", neck)) for k, v in m.state_dict().items()}
    assert mine == {k: v for k, v in theirs.items() if k.split(".")[0] in ("backbone", "neck")}


def test_initial_statistics_of_every_parameter(golden):
    torch.manual_seed(3)
    resnet, neck = ResNet(18), FPN((128, 256, 512))
    mine = {f"{part}.{k}": v for part, m in (("backbone", resnet), ("neck", neck)) for k, v in m.named_parameters()}
    expected = recorded(golden)
    assert set(mine) == set(expected)
    for name, (shape, mean, std) in expected.items():
        value = mine[name].detach()
        error = std / value.numel() ** 0.5
        assert list(value.shape) == shape, name
        assert abs(value.mean() - mean) <= 8 * error + 1e-6, name
        assert abs(value.std(correction=0) - std) <= 8 * error + 1e-6, name


@pytest.mark.parametrize("depth, parameters", [(18, 11_176_512), (50, 23_508_032)])
def test_parameters_and_strides(depth, parameters):
    resnet = ResNet(depth).eval()
    assert sum(p.numel() for p in resnet.parameters()) == parameters
    with torch.no_grad(): maps = resnet(torch.zeros(1, 3, 96, 160))
    assert [m.shape[-2:] for m in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert tuple(m.shape[1] for m in maps) == resnet.channels


def test_caffe_style_reads_one_pixel_in_four():
    steps = {}
    for style in ("1x1", "3x3"):
        block = ResNet(50, stride_in=style).layer2[0]
        steps[style] = (block.conv1.stride[0], block.conv2.stride[0])
    assert steps == {"1x1": (2, 1), "3x3": (1, 2)}
    one, other = ResNet(50, stride_in="1x1").eval(), ResNet(50, stride_in="3x3").eval()
    other.load_state_dict(one.state_dict())
    for network in (one, other):
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d): nn.init.ones_(m.weight)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(): a, b = one(x), other(x)
    assert torch.equal(a[0], b[0]) and not torch.allclose(a[1], b[1])


def test_frozen_norm_stays_frozen_and_trainable_does_not():
    for norm, training in (("frozen", False), ("trainable", True)):
        norms = [m for m in ResNet(18, norm=norm).train().modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(m.training is training for m in norms) and all(p.requires_grad is training for m in norms for p in m.parameters())
    network = ResNet(18).train(); before = network.bn1.running_mean.clone()
    network(torch.randn(2, 3, 64, 64) + 5)
    assert torch.equal(before, network.bn1.running_mean)
    network = ResNet(18, norm="trainable").train()
    network(torch.randn(2, 3, 64, 64) + 5)
    assert not torch.equal(before, network.bn1.running_mean)


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    network = ResNet(50, norm="trainable")
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.ones_(m.weight)
    neck = FPN(network.channels[1:], 32)
    sum(m.square().sum() for m in neck(network(torch.randn(2, 3, 64, 64)))).backward()
    assert [n for n, p in (*network.named_parameters(), *neck.named_parameters()) if p.grad is None or p.grad.abs().max() == 0] == []


def test_pyramid_by_hand_and_odd_sizes():
    neck = FPN((1, 1, 1), 1)
    for p in neck.parameters(): nn.init.constant_(p, 1.0 if p.ndim > 1 else 0.0)
    fine, middle, coarse = neck([torch.ones(1, 1, 9, 7), torch.ones(1, 1, 5, 4), torch.ones(1, 1, 3, 2)])
    assert fine.shape[-2:] == (9, 7) and middle.shape[-2:] == (5, 4) and coarse.shape[-2:] == (3, 2)
    assert fine[0, 0, 4, 3] == 27 and middle[0, 0, 2, 2] == 18 and coarse[0, 0, 1, 1] == 6 and fine[0, 0, 0, 0] == 12


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [(64, 80), (33, 17), (1, 1), (135, 96)])
def test_unet_takes_any_size(stride, size):
    unet = UNet((4, 6, 8), in_channels=2, stride=stride).eval()
    with torch.no_grad(): (out,) = unet(torch.randn(2, 2, *size))
    assert out.shape == (2, 4, -(-size[0] // stride), -(-size[1] // stride)) and torch.isfinite(out).all()


def test_unet_padding_is_cropped_away_and_gradient_reaches_all():
    torch.manual_seed(0)
    unet = UNet((4, 6, 8), down=(1, 2, 1), up=(2, 1))
    (out,) = unet(torch.randn(2, 1, 30, 26))
    out.square().sum().backward()
    assert [n for n, p in unet.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    unet.eval(); x = torch.randn(1, 1, 32, 32)
    with torch.no_grad(): assert torch.allclose(unet(x)[0], unet.to(memory_format=torch.channels_last)(x)[0], atol=1e-4)


@pytest.mark.parametrize("make, word", [(lambda: ResNet(34), "34"), (lambda: ResNet(50, stride_in="2x2"), "2x2"),
                                        (lambda: ResNet(18, norm="off"), "off"), (lambda: UNet((4, 8), down=(1, 1, 1)), "3 block counts")])
def test_unknown_words_are_refused(make, word):
    with pytest.raises(InputError, match=word) as error: make()
    assert "\n" not in str(error.value)


def torchvision_like(path, depth=18):
    """A file such as torchvision's: a classifier besides, no counters of batches; returns the weights in it."""
    torch.manual_seed(7)
    state = {k: v for k, v in ResNet(depth).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    return state


def test_imagenet_from_a_local_file(tmp_path):
    state = torchvision_like(tmp_path / "w.pth")
    resnet = load_imagenet(ResNet(18), tmp_path / "w.pth")
    assert all(torch.equal(resnet.state_dict()[k], v) for k, v in state.items())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(folder, address) of a server on loopback; torch keeps its downloads in a fresh folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"; folder.mkdir()
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True); thread.start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown(); thread.join()


def test_imagenet_from_a_server_checks_the_hash(server):
    folder, address = server
    state = torchvision_like(folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    (folder / "w.pth").rename(folder / f"resnet18-{digest}.pth")
    resnet = load_imagenet(ResNet(18), f"{address}/resnet18-{digest}.pth")
    assert all(torch.equal(resnet.state_dict()[k], v) for k, v in state.items())
    (folder / "resnet18-f37072fd.pth").write_bytes((folder / f"resnet18-{digest}.pth").read_bytes())
    with pytest.raises(InputError, match="invalid hash.*resnet18-f37072fd.pth"): load_imagenet(ResNet(18), f"{address}/resnet18-f37072fd.pth")


def test_imagenet_that_cannot_be_had_names_the_mend(server, tmp_path):
    folder, address = server
    torchvision_like(folder / "w.pth")
    (folder / "cut.pth").write_bytes((folder / "w.pth").read_bytes()[:5000])
    (folder / "text.pth").write_text("no weights")
    torch.save([1, 2], folder / "list.pth")
    for source in (f"{address}/resnet18-f37072fd.pth", "http://127.0.0.1:9/resnet18-f37072fd.pth", tmp_path / "absent.pth", folder / "cut.pth", folder / "text.pth", folder / "list.pth"):
        with pytest.raises(InputError) as error: load_imagenet(ResNet(18), source)
        assert str(source) in str(error.value) and "give" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="not the weights of a ResNet-50"): load_imagenet(ResNet(50), folder / "w.pth")
    assert IMAGENET[50].endswith("resnet50-0676ba61.pth")


def test_file_with_code_is_not_run(tmp_path):
    class Bad:
        def __reduce__(self): return (open, (str(tmp_path / "owned"), "w"))
    torch.save({"conv1.weight": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(InputError): load_imagenet(ResNet(18), tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()
