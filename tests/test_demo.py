"""The demos without a browser: pictures follow the settings, widgets follow the pictures, bad input is one line, the app starts and ends."""
import json
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from bafe_nb import app, demo, exchange, pictures, scenes, scores, target_bank
from bafe_nb.boxes import InputError

QUIET = scenes.scene(29)
BANK = target_bank.TargetBank([scenes.scene(k) for k in range(2, 26, 3)])


def decoded(data): return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def different(a, b): return a.shape != b.shape or bool((a != b).any())


def test_window_stays_inside_and_keeps_its_size():
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w = rng.integers(1, 400, 2); zoom = float(rng.uniform(1, 12)); x, y = rng.uniform(0, 100, 2)
        x1, y1, x2, y2 = demo.window((h, w), zoom, x, y)
        assert 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h
        assert x2 - x1 == max(round(w / zoom), 1) and y2 - y1 == max(round(h / zoom), 1)
    for wrong in ((0.9, 50, 50), (2, -1, 50), (2, 50, 101)):
        with pytest.raises(InputError): demo.window((10, 10), *wrong)


def test_enlarged_pixels_are_squares_of_one_size():
    image = np.random.default_rng(1).integers(0, 256, (40, 60)).astype(np.uint8)
    picture, factor = demo.enlarge(image, (10, 5, 30, 20), 210)
    assert factor == 10 and (picture == np.kron(image[5:20, 10:30], np.ones((10, 10), np.uint8))[..., None]).all()
    small, factor = demo.enlarge(image, (0, 0, 60, 40), 30)
    assert factor == 0.5 and small.shape == (20, 30, 3)


@pytest.mark.parametrize("shape", ["box", "dashed", "circle"])
@pytest.mark.parametrize("factor", [1, 3, 8, 16])
def test_an_outline_leaves_the_pixels_of_its_box(shape, factor):
    picture = np.full((20 * factor, 20 * factor, 3), 9, np.uint8)
    demo.outline(picture, [[8, 9, 11, 13]], (0, 0, 20, 20), factor, pictures.TARGET, shape)
    assert (picture != 9).any()
    if shape != "circle": assert (picture[9 * factor:13 * factor, 8 * factor:11 * factor] == 9).all()
    moved = np.full_like(picture, 9)
    demo.outline(moved, [[58, 69, 61, 73]], (50, 60, 70, 80), factor, pictures.TARGET, shape)
    assert (moved == picture).all()                     # a window that starts elsewhere moves the box along
    demo.outline(moved, np.zeros((0, 4)), (0, 0, 20, 20), factor, pictures.TARGET, shape)
    demo.outline(moved, [[300, 9, 304, 12]], (0, 0, 20, 20), factor, pictures.TARGET, shape)
    assert (moved == picture).all()                     # nothing, and a box out of sight, draw nothing


def test_png_and_joined_keep_every_pixel():
    a, b = np.full((4, 5, 3), 10, np.uint8), np.full((7, 3, 3), 20, np.uint8)
    both = demo.joined([a, b], gap=2)
    assert both.shape == (7, 10, 3) and (both[:4, :5] == 10).all() and (both[:, 7:] == 20).all() and (both[4:, :5] == 255).all() and (both[:, 5:7] == 255).all()
    assert demo.joined([a, b], axis=0, gap=2).shape == (13, 5, 3)
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3)).astype(np.uint8)
    assert (decoded(demo.png(noise)) == noise).all()


def test_every_setting_of_the_browser_changes_its_picture():
    s = next(s for s in map(scenes.scene, range(40)) if len(s.boxes) > 3 and 0.2 < s.sky.mean() < 0.9)
    s = replace(s, real=np.arange(len(s.boxes)) < 1)
    start = demo.browse(s)
    for change in (dict(boxes=False), dict(sky=False), dict(targets=True), dict(zoom=3)): assert different(start, demo.browse(s, demo.Browse(**change))), change
    zoomed = demo.Browse(zoom=4)
    for change in (dict(x=10), dict(y=90)): assert different(demo.browse(s, zoomed), demo.browse(s, replace(zoomed, **change))), change
    for name in (pictures.TARGET, pictures.PASTED): assert (start == demo.colour(name)).all(-1).any()       # real and pasted have their own colours
    assert f"{len(s.boxes)} targets (1 real)" in demo.facts(s)


def test_datasets_without_and_with_images(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.densesirst, "find_root", lambda: None)
    demo.datasets.cache_clear()
    try: assert list(demo.datasets()) == ["scenes"] and demo.sample("scenes", 0).name == "scene-000002"
    finally: demo.datasets.cache_clear(); demo.sample.cache_clear()
    with pytest.raises(InputError, match="tset"): demo.sample("tset", 0)
    with pytest.raises(InputError, match="give 0 to 199"): demo.sample("scenes", 200)


def test_real_images_are_browsed(data, monkeypatch):
    monkeypatch.setattr(demo.densesirst, "find_root", lambda: data)
    demo.datasets.cache_clear(); demo.sample.cache_clear()
    try:
        assert "test_v2" in demo.datasets()
        s = demo.sample("test_v2", 0)
        assert s.name == demo.datasets()["test_v2"].names[0] and different(demo.browse(s), demo.browse(s, demo.Browse(boxes=False)))
        assert len(demo.bank_of("test_v2")) > 8
    finally: demo.datasets.cache_clear(); demo.sample.cache_clear(); demo.bank_of.cache_clear()


@pytest.mark.parametrize("window", [0, 12, 25, 60])
@pytest.mark.parametrize("sky", [True, False])
def test_pasted_targets_keep_apart_and_to_the_sky(window, sky):
    s = next(s for s in map(scenes.scene, range(60)) if 0.2 < s.sky.mean() < 0.6)
    after, n = demo.paste_by_hand(s, BANK, demo.Play(number=40, window=window, sky=sky))
    new = after.boxes[len(s.boxes):].astype(int)
    assert n == len(new) and n > 20 and not after.real[len(s.boxes):].any()
    taken = s.targets.copy()
    for x1, y1, x2, y2 in new:
        assert not taken[y1 - 1:y2 + 1, x1 - 1:x2 + 1].any()
        if sky: assert s.sky[y1:y2, x1:x2].all()
        taken[y1:y2, x1:x2] = True
    assert (after.targets == taken).all() and (after.image[~taken] == s.image[~taken]).all() and (after.image >= s.image).all()
    if not sky: assert any(not s.sky[y1:y2, x1:x2].all() for x1, y1, x2, y2 in new)


def test_a_window_gathers_its_targets():
    spread = {}
    for window in (0, 25):
        after, n = demo.paste_by_hand(QUIET, BANK, demo.Play(number=8, window=window, seed=3))
        spread[window] = np.ptp(after.boxes[-n:, :2], axis=0).max()
    assert spread[25] <= 25 < spread[0]


def test_nothing_to_paste_and_nowhere():
    after, n = demo.paste_by_hand(replace(QUIET, sky=np.zeros(QUIET.size, bool)), BANK, demo.Play())
    assert n == 0 and (after.image == QUIET.image).all()
    with pytest.raises(InputError, match="no target"): demo.paste_by_hand(QUIET, target_bank.TargetBank([]), demo.Play())
    assert demo.play(QUIET, BANK, demo.Play(number=0)).ndim == 3


def test_the_paste_is_the_papers_sum():
    settings = demo.Play(number=1, sigma=0.5, lam=0.6, seed=2)
    after, n = demo.paste_by_hand(QUIET, BANK, settings)
    x1, y1, x2, y2 = after.boxes[-1].astype(int)
    patch = next(p for k, p in enumerate(demo.patches(BANK)) if k == np.random.default_rng(2).integers(0, len(demo.patches(BANK)), 1)[0])
    grid = [np.linspace(-1, 1, k) for k in patch.shape]
    g = np.exp(-(grid[0][:, None] ** 2 + grid[1] ** 2) / (2 * 0.25)); g = (g - g.min()) / (g.max() - g.min())
    want = np.minimum(QUIET.image[y1:y2, x1:x2] + 0.6 * g * patch, 255)
    assert n == 1 and len(demo.patches(BANK)) > 20 and np.abs(after.image[y1:y2, x1:x2] - want).max() < 1.01


@pytest.mark.parametrize("kind", exchange.KINDS)
def test_trade_moves_the_share_that_is_asked(kind):
    sky, target = demo.filters(QUIET.image[:64, :64])
    for p in (0.0, 0.25, 1.0):
        *after, moved = demo.trade(kind, p, sky, target)
        assert all(a.shape == sky.shape and torch.isfinite(a).all() for a in after)
        want = 0 if kind == "none" else 8 if kind == "spatial" and p else int(8 * p)
        assert moved[0].sum() == moved[1].sum() == want, (kind, p)
        assert (after[0][0, ~moved[0]] == sky[0, ~moved[0]]).all()
    state = torch.get_rng_state()
    again = demo.trade(kind, 0.5, sky, target)
    assert (again[0] == demo.trade(kind, 0.5, sky, target)[0]).all() and (torch.get_rng_state() == state).all()


def test_trade_uses_what_was_learnt():
    sky, target = demo.filters(QUIET.image[:64, :64])
    own = exchange.build("learnable", 8, 0.5)
    with torch.no_grad(): own.preference.copy_(torch.arange(8.0))
    assert np.flatnonzero(demo.trade("learnable", 0.25, sky, target, own)[2][0]).tolist() == [6, 7]
    assert np.flatnonzero(demo.trade("static", 0.25, sky, target, own)[2][0]).tolist() == [0, 4]


def test_exchange_picture_follows_every_setting():
    sky, target = demo.filters(QUIET.image[:64, :64], 20)
    start = demo.view_trade(sky, target)
    for change in (dict(kind="dynamic"), dict(kind="spatial"), dict(p=0.2), dict(channel=5), dict(channel=18)): assert different(start, demo.view_trade(sky, target, demo.Trade(**change))), change
    with pytest.raises(InputError, match="channel 20"): demo.view_trade(sky, target, demo.Trade(channel=20))


def test_branches_of_a_network_are_what_its_exchange_gets():
    class Tiny(torch.nn.Module):
        pass
    with pytest.raises(InputError, match="trades no channels"): demo.exchange_of(Tiny())
    from bafe_nb import bafenet
    torch.manual_seed(0)
    model = bafenet.build("bafe-small").eval()
    sky, target = demo.branches(model, QUIET.image[:96, :96])
    assert sky.shape == target.shape and sky.shape[0] == 1 and not demo.exchange_of(model)._forward_pre_hooks


def test_the_viewer_looks_at_the_network_before_folding():
    """Folding takes the exchange out of the network; the viewer must still find it, and the detector must answer the same."""
    model = demo.trained()
    if model.preset.head.exchange != "none": assert not isinstance(demo.exchange_of(model), exchange.NoExchange)
    sky, target, own = demo.entering("trained network", "scenes", 4)
    assert own is demo.exchange_of(model) and sky.shape == target.shape
    assert np.allclose(demo.evaluation.predict(model, QUIET.image).detections, demo.evaluation.predict(demo.network(), QUIET.image).detections, atol=0.01)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tiff"])
def test_uploads_become_grey_levels(ending):
    grey = cv2.GaussianBlur(QUIET.image, (0, 0), 2)
    for image in (grey, np.dstack([grey] * 3)):
        read = demo.read_upload("a" + ending, cv2.imencode(ending, image)[1].tobytes())
        assert read.dtype == np.uint8 and read.shape == grey.shape and np.abs(read.astype(int) - grey).max() <= (8 if ending == ".jpg" else 0)


def test_uploads_that_are_refused():
    whole = cv2.imencode(".png", QUIET.image)[1].tobytes()
    huge = cv2.imencode(".png", np.zeros((2001, 2000), np.uint8))[1].tobytes()
    deep = cv2.imencode(".png", QUIET.image.astype(np.uint16) * 200)[1].tobytes()
    for name, content, word in (("a.txt", b"words", "a.txt"), ("cut.png", whole[:len(whole) // 2], "cut.png"), ("none.png", b"", "none.png"), ("huge.png", huge, "2000 x 2001"), ("deep.png", deep, "8 bits")):
        with pytest.raises(InputError, match=word) as caught: demo.read_upload(name, content)
        assert "\n" not in str(caught.value)


def test_upload_widget_of_both_versions():
    assert demo.uploaded(()) is None and demo.uploaded({}) is None
    assert demo.uploaded(({"name": "a.png", "type": "image/png", "size": 2, "content": memoryview(b"xy")},)) == ("a.png", b"xy")
    assert demo.uploaded({"b.png": {"metadata": {"name": "b.png"}, "content": b"xy"}}) == ("b.png", b"xy")



def test_the_network_runs_once_an_image():
    from bafe_nb import bafenet
    torch.manual_seed(0)
    model, passes = bafenet.build("bafe-small").eval(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    for threshold in (0.1, 0.5, 0.9): demo.detect(QUIET, threshold, model=model)
    assert len(passes) == 1
    demo.detect(scenes.scene(30), 0.5, model=model)
    assert len(passes) == 2
    for weight in (0.3, 0.7): demo.detect(scenes.scene(30), 0.5, model=model, sky=weight)
    assert len(passes) == 3, "the sky is asked once an image"
    for k in range(31, 52): demo.predicted(scenes.scene(k).image[:64, :64], model)
    assert len(demo.KEPT) <= 16


def test_detections_are_drawn_judged_tabled_and_saved(tmp_path):
    exact = np.c_[QUIET.boxes, np.linspace(0.9, 0.2, len(QUIET.boxes))].astype(np.float32)
    exact = np.concatenate([exact, [[100, 20, 104, 24, 0.6]]]).astype(np.float32)
    low, high = demo.view_detections(QUIET, exact, 0.1), demo.view_detections(QUIET, exact, 0.55)
    assert low.shape == high.shape and different(low, high)
    assert not (low == demo.colour(pictures.MISSED)).all(-1).any() and (high == demo.colour(pictures.MISSED)).all(-1).any()
    n = len(QUIET.boxes); kept = int((exact[:-1, 4] > 0.55).sum())
    assert f"hits {n} " in demo.counted(QUIET, exact, 0.1) and f"hits {kept} (box), missed {n - kept} (dashed), false alarms 1" in demo.counted(QUIET, exact, 0.55)
    assert f"{n + 1} detections over 0.10" in demo.counted(QUIET, exact, 0.1, truth=False)
    (tmp_path / "d.json").write_text(demo.as_json(QUIET.name, exact))
    assert np.allclose(scores.read_detections(tmp_path / "d.json")[QUIET.name], exact, atol=1e-4)
    assert demo.table(exact, 4).count("<tr>") == 5 and f"{len(exact) - 4} more" in demo.table(exact, 4)
    assert demo.table(exact[:0]).count("<tr>") == 1


def test_panels_move():
    pytest.importorskip("ipywidgets")
    for make, moves in ((demo.browser, dict(split="scenes", image=3, boxes=False, sky=False, zoom=3.0, x=20, y=70)), (demo.playground, dict(split="scenes", image=4, number=30, sigma=0.9, lam=0.4, window=50, seed=4, close=False))):
        panel = make()
        for name, value in moves.items():
            before = panel.picture.value
            if panel.controls[name].value == value: continue
            panel.controls[name].value = value
            assert panel.picture.value != before and not panel.error.value, name
        assert decoded(panel.picture.value).ndim == 3


def test_a_smaller_split_pulls_the_image_slider_back():
    pytest.importorskip("ipywidgets")
    split, image = demo.split_and_image(7)
    assert image.max == len(demo.datasets()[split.value]) - 1
    image.value = image.max; split.value = "scenes"
    assert image.max == 199 and image.value <= 199


def test_an_error_stands_in_the_panel_and_the_picture_stays():
    w = pytest.importorskip("ipywidgets")
    def draw(n):
        if n > 2: raise InputError("n is <3>: give less")
        return np.full((4, 4, 3), n, np.uint8), f"n = {n}"
    panel = demo.Panel(draw, n=w.IntSlider(1, 0, 5))
    good = panel.picture.value
    panel.controls["n"].value = 4
    assert "&lt;3&gt;" in panel.error.value and panel.picture.value == good
    panel.controls["n"].value = 2
    assert panel.error.value == "" and panel.note.value == "n = 2" and panel.picture.value != good


def test_weights_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no-such.safetensors"): demo.find_weights("no-such.safetensors")
    (tmp_path / "weights").mkdir(); (tmp_path / "weights" / "a.safetensors").write_bytes(b"")
    assert demo.find_weights("a.safetensors") == Path("weights/a.safetensors")


def test_ports_and_packages(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind((demo.HOST, 0)); taken.listen()
        port = taken.getsockname()[1]
        for words, word in (((f"{port}",), "in use"), (("70000",), "no port"), (("-4",), "no port"), (("eight",), "eight")):
            assert app.main(["demo", "--port", *words]) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and word in err and "Traceback" not in err, err
    assert 0 < demo.free_port(0) < 65536
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert app.main(["demo"]) == 2 and "bafe_nb[lab]" in capsys.readouterr().err


def test_a_missing_ipywidgets_is_one_line():
    code = "import sys; sys.modules['ipywidgets'] = None\nfrom bafe_nb import demo, boxes\ntry: demo.browser()\nexcept boxes.InputError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "bafe_nb[lab]" in done.stdout and done.stdout.count("\n") == 1, done.stderr


def test_the_served_notebook_is_valid():
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.reads(demo.app_notebook(Path("a folder/with 'quotes'")), as_version=4)
    nbformat.validate(book)
    compile(book.cells[0].source, "demo", "exec")


def test_voila_that_dies_is_said_in_one_line(tmp_path):
    (tmp_path / "log").write_text("first\nthe reason\n")
    dead = subprocess.Popen([sys.executable, "-c", ""]); dead.wait()
    with pytest.raises(InputError, match="the reason"): demo.answering(dead, f"http://{demo.HOST}:{demo.free_port(0)}", tmp_path / "log", 2)


def test_the_notebook_keeps_pictures_and_no_widgets():
    book = json.loads((Path(__file__).parent.parent / "nbs" / "30_demo.ipynb").read_text(encoding="utf-8"))
    kinds = [kind for cell in book["cells"] for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert not any("widget" in kind for kind in kinds), "run the notebook with nbdev-test or nbconvert before committing, so that no empty widgets are kept"
    assert sum(kind.startswith("image/") for kind in kinds) >= 8
