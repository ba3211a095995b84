"""The exchanges: recorded outputs of the authors' code, gradients, and the properties that the notebook claims."""
import pytest
import torch
from torch import nn

from bafe_nb import exchange
from bafe_nb.boxes import InputError
from bafe_nb.exchange import KINDS, ChannelAttention, DynamicExchange, LargeKernelSelection, LearnableExchange, NoExchange, SpatialExchange, StaticExchange

torch.set_num_threads(1)


def recorded(golden, name):
    return torch.load(golden / f"{name}.pt", weights_only=True)


def near(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance


def pair(seed=0, n=3, c=16, h=6, w=10, **how):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, c, h, w, generator=g, **how) for _ in range(2)]


def shuffled(module, seed=0, std=0.3):
    """The module with every parameter drawn at random, so that selections are no coin toss."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters(): p.copy_(std * torch.randn(p.shape, generator=g))
    return module


# ---- the recorded outputs of the authors' code

@pytest.mark.parametrize("key, kind", [("channel", StaticExchange), ("spatial", SpatialExchange)])
def test_static_and_spatial_equal_july_2024(golden, key, kind):
    r = recorded(golden, "exchange_july2024")[key]
    module = kind(p=0.5)
    module.load_state_dict(r["state_dict"], strict=True)
    sky, target = module(r["x1"], r["x2"])
    near(sky, r["out1"]); near(target, r["out2"])


def test_dynamic_equals_the_paper_with_its_gradients(golden):
    r = recorded(golden, "channel_att_exchange")
    module = DynamicExchange(64, 0.5)
    module.load_state_dict(r["state_dict"], strict=True)
    x1, x2 = r["x1"].requires_grad_(), r["x2"].requires_grad_()
    sky, target = module(x1, x2)
    near(sky, r["out1"]); near(target, r["out2"])
    assert torch.equal(module.choose(x1), r["idx1"].sort(1).values) and torch.equal(module.choose(x2), r["idx2"].sort(1).values)
    ((sky * r["w1"]).sum() + (target * r["w2"]).sum()).backward()
    near(x1.grad, r["gx1"]); near(x2.grad, r["gx2"])
    near(module.mlp.fc1.weight.grad, r["g_mlp_fc1_w"], 1e-3 * r["g_mlp_fc1_w"].abs().max())
    near(module.mlp.fc2.bias.grad, r["g_mlp_fc2_b"], 1e-3 * r["g_mlp_fc2_b"].abs().max())


def test_large_kernel_modules_equal_the_authors(golden):
    r = recorded(golden, "lsk_module")
    module = LargeKernelSelection(64)
    module.load_state_dict(r["state_dict"], strict=True)
    y1, y2 = module(r["x1"], r["x2"])
    near(y1, r["y1"]); near(y2, r["y2"])
    r = recorded(golden, "lsk_layer")
    layer = ChannelAttention(64)
    layer.load_state_dict(r["state_dict"], strict=True)
    near(layer(r["x"]), r["y"])
