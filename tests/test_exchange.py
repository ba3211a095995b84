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


# ---- the same function as the long way, on other inputs than the recorded ones

def dense(mlp, x):
    """The MLP 1-64-1 as layers, through the 64-fold tensor."""
    return mlp.fc2(mlp.fc1(x[..., None]).relu())[..., 0]


def spread_by_hand(mlp, sky, target, dim, n):
    """July 2024: every n-th channel or column, straight from its definition."""
    mask = (torch.arange(sky.shape[dim]) % n == 0).view([-1 if d == dim else 1 for d in range(4)])
    return torch.where(mask, dense(mlp, target), sky), torch.where(mask, dense(mlp, sky), target)


@pytest.mark.parametrize("kind, dim", [(StaticExchange, 1), (SpatialExchange, 3)])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_nth_with_exact_gradients(kind, dim, n):
    module = kind(p=1 / n).double()
    sky, target = (x.requires_grad_() for x in pair(n, c=9, dtype=torch.float64))
    weight = torch.randn(sky.shape, dtype=torch.float64)
    wanted = [sky, target, *module.parameters()]
    ours, theirs = module(sky, target), spread_by_hand(module.mlp_exchange, sky, target, dim, n)
    for a, b in zip(ours, theirs): near(a, b, 1e-12)
    for a, b in zip(*(torch.autograd.grad((o[0] * weight + o[1] * weight ** 2).sum(), wanted) for o in (ours, theirs))): near(a, b, 1e-9)


def test_scalar_mlp_with_dead_and_flat_units():
    module = StaticExchange(1.0)
    with torch.no_grad():
        module.mlp_exchange.fc1.weight[:8] = 0                    # no hinge; on or off for every value
        module.mlp_exchange.fc1.bias[:4] = 0
        module.mlp_exchange.fc1.weight[8:10] = 1e-42              # hinge at infinity
    sky, target = pair(1)
    for a, b in zip(module(sky, target), spread_by_hand(module.mlp_exchange, sky, target, 1, 1)): near(a, b, 1e-5)


def test_scalar_mlp_keeps_float32_exact_over_many_values():
    mlp = StaticExchange().mlp_exchange
    x = torch.randn(2, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    mlp(x).square().mean().backward()
    ours = [p.grad.clone() for p in mlp.parameters()]
    mlp.zero_grad(); exact = nn.Module.double(mlp)
    sum(dense(exact, part.double()).square().sum() for part in x).div(x.numel()).backward()
    for a, p in zip(ours, exact.parameters()): near(a.double(), p.grad, 1e-5)


def test_dynamic_equals_one_image_after_another():
    module = shuffled(DynamicExchange(12, 0.5))
    sky, target = pair(2, n=4, c=12)
    after = module(sky, target)
    for n in range(4):
        at_sky, at_target = (module.attention_mask(x[n:n + 1])[0].topk(6).indices.sort().values for x in (sky, target))
        through = lambda x: module.mlp.fc2(module.mlp.fc1(x.permute(1, 2, 0)).relu()).permute(2, 0, 1)
        a, b = sky[n].clone(), target[n].clone()
        a[at_sky], b[at_target] = through(target[n, at_target]), through(sky[n, at_sky])
        near(after[0][n], a, 1e-5); near(after[1][n], b, 1e-5)


@pytest.mark.parametrize("size", [(20, 23), (3, 3), (2, 9), (1, 1)])
def test_nine_grids_equal_the_dilated_convolution(size):
    conv = exchange.DilatedDepthwise(4)
    ours, theirs = (torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(5)).requires_grad_() for _ in range(2))
    conv(ours).square().sum().backward(); grads = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad(); nn.Conv2d.forward(conv, theirs).square().sum().backward()
    near(conv(ours), nn.Conv2d.forward(conv, theirs), 1e-5); near(ours.grad, theirs.grad)
    for a, p in zip(grads, conv.parameters()): near(a, p.grad, 1e-3)


# ---- who gets a gradient

@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_but_the_selection_of_the_paper(kind):
    module = shuffled(exchange.build(kind, 16))
    sky, target = (x.requires_grad_() for x in pair(3))
    a, b = module(sky, target)
    (a.square().sum() + (b * torch.arange(10)).square().sum()).backward()
    assert sky.grad.abs().sum() > 0 and target.grad.abs().sum() > 0
    for name, p in module.named_parameters():
        if name.startswith("attention_mask"): assert p.grad is None, name
        else: assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_an_attention_has_the_parameters_that_are_never_trained():
    names = [n for n, _ in DynamicExchange(256).named_parameters() if n.startswith("attention_mask")]
    assert len(names) == 12
    assert sum(p.numel() for p in DynamicExchange(256).attention_mask.parameters()) == 118_470
    assert sum(p.numel() for p in DynamicExchange(256).parameters()) == 135_046


def test_the_preference_gets_the_slope_of_the_mix():
    module = LearnableExchange(6, 0.5)
    sky, target = (x.double() for x in pair(4, c=6))
    weight = torch.randn(2, *sky.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = module(sky, target)
    ((a * weight[0]).sum() + (b * weight[1]).sum()).backward()
    soft, _ = exchange.gates(module.preference, 3)
    by_hand = soft * (1 - soft) * ((weight[0] - weight[1]) * (target - sky)).sum((0, 2, 3))
    near(module.preference.grad.double(), by_hand.detach(), 1e-4)


def test_learnable_moves_the_channels_it_prefers():
    module = LearnableExchange(4, 0.25)
    with torch.no_grad(): module.preference.copy_(torch.tensor([0.0, -1.0, 3.0, 1.0]))
    sky, target = pair(5, c=4)
    a, b = module(sky, target)
    assert torch.equal(a[:, 2], target[:, 2]) and torch.equal(b[:, 2], sky[:, 2])
    assert torch.equal(a[:, [0, 1, 3]], sky[:, [0, 1, 3]]) and torch.equal(b[:, [0, 1, 3]], target[:, [0, 1, 3]])


def test_learning_finds_the_channels_that_are_needed():
    torch.manual_seed(0)
    module = LearnableExchange(8, 0.25)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(30):
        sky, target = torch.randn(2, 2, 8, 6, 6)
        loss = (module(sky, target)[1][:, [2, 5]].sum(1) - sky[:, [2, 5]].sum(1)).square().mean()
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    assert exchange.gates(module.preference, 2)[1].nonzero().flatten().tolist() == [2, 5]


# ---- properties of every kind

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [0, 0.25, 0.5, 0.8, 1])
def test_shape_type_and_inputs_are_kept(kind, p):
    module = shuffled(exchange.build(kind, 10, p))
    sky, target = pair(6, c=10, h=3, w=7)
    copies = sky.clone(), target.clone()
    a, b = module(sky, target)
    assert a.shape == b.shape == sky.shape and a.dtype == b.dtype == sky.dtype
    assert torch.equal(sky, copies[0]) and torch.equal(target, copies[1])
    if p == 0: assert torch.equal(a, sky) and torch.equal(b, target)


@pytest.mark.parametrize("kind, p, moved", [("static", 0.3, 3), ("static", 1, 10), ("dynamic", 0.3, 3), ("dynamic", 1, 10), ("learnable", 0.3, 3), ("learnable", 1, 10)])
def test_p_says_how_many_channels_move(kind, p, moved):
    module = shuffled(exchange.build(kind, 10, p))
    before = pair(7, c=10)
    for x, y in zip(module(*before), before): assert (x != y).any(3).any(2).sum(1).tolist() == [moved] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_see_each_other(kind):
    module = shuffled(exchange.build(kind, 16))
    sky, target = pair(8, n=4)
    order = torch.tensor([2, 0, 3, 1])
    whole, shuffled_images = module(sky, target), module(sky[order], target[order])
    for a, b in zip(whole, shuffled_images): near(a[order], b, 1e-5)
    for n in range(4):
        for a, b in zip(whole, module(sky[n:n + 1], target[n:n + 1])): near(a[n:n + 1], b, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_branches_are_treated_alike(kind):
    module = shuffled(exchange.build(kind, 16))
    sky, target = pair(9)
    a, b = module(sky, target); d, c = module(target, sky)
    near(a, c, 1e-5); near(b, d, 1e-5)


@pytest.mark.parametrize("p", [0, 0.2, 0.5, 0.9, 1])
def test_learnable_twice_is_nothing(p):
    module = LearnableExchange(16, p)
    sky, target = pair(10)
    a, b = module(*module(sky, target))
    assert torch.equal(a, sky) and torch.equal(b, target)


def test_spaced():
    assert exchange.spaced(8, 0).tolist() == [] and exchange.spaced(8, 1).tolist() == list(range(8))
    assert exchange.spaced(8, 0.75).tolist() == [0, 1, 2, 4, 5, 6] and exchange.spaced(10, 0.3).tolist() == [0, 3, 6]
    assert exchange.spaced(0, 0.5).tolist() == []
    for n in range(1, 257): assert torch.equal(exchange.spaced(256, 1 / n), torch.arange(0, 256, n))
    for p in torch.linspace(0, 1, 101).tolist():
        picked = exchange.spaced(64, p)
        assert (picked.diff() > 0).all() and (picked < 64).all() and abs(len(picked) - 64 * p) < 1 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_autocast(kind):
    module = shuffled(exchange.build(kind, 16))
    sky, target = (x.requires_grad_() for x in pair(11))
    with torch.autocast("cpu", torch.bfloat16):
        low = module(sky.bfloat16(), target.bfloat16())
        mixed = module(sky, target)
    assert all(x.dtype == torch.bfloat16 for x in low) and all(x.dtype == torch.float32 for x in mixed)
    assert all(torch.isfinite(x).all() for x in (*low, *mixed))
    sum(x.float().square().sum() for x in low).backward()
    assert torch.isfinite(sky.grad).all() and all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())
    for a, b in zip(mixed, module(sky, target)): near(a, b, 0.05 * b.abs().max())


# ---- bad input

@pytest.mark.parametrize("call, words", [
    (lambda: exchange.build("random", 16), "unknown kind 'random'"),
    (lambda: exchange.build("static", 16, 1.5), "p = 1.5"),
    (lambda: exchange.build("dynamic", 16, -0.1), "p = -0.1"),
    (lambda: NoExchange()(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4, 4)), "one shape"),
    (lambda: StaticExchange()(torch.zeros(4, 8, 8), torch.zeros(4, 8, 8)), "(n, c, h, w)"),
    (lambda: DynamicExchange(8)(*[torch.zeros(1, 4, 8, 8)] * 2), "4 channels"),
    (lambda: LearnableExchange(8)(*[torch.zeros(1, 4, 8, 8)] * 2), "4 channels"),
    (lambda: LargeKernelSelection(1), "2 or more")])
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError) as error: call()
    assert words in str(error.value) and "\n" not in str(error.value)


# ---- a real image

def test_real_image_moves_what_it_should(data):
    from bafe_nb import densesirst
    name = densesirst.names(data, "test_v2")[0]
    image = torch.from_numpy(densesirst.load(data, name).image.copy()).float()[None, None] / 255
    sky = torch.cat([nn.functional.avg_pool2d(image, k, 1, k // 2) for k in (3, 5, 9, 17)], 1)
    a, b = LearnableExchange(4, 0.5)(sky, image - sky)
    assert torch.equal(a[:, ::2], (image - sky)[:, ::2]) and torch.equal(a[:, 1::2], sky[:, 1::2])
    near(a + b, image.expand_as(sky), 1e-6)
