"""Runs in pieces: same weights as one go, rows once, the selected row marked; the dataset in parts without loss; speed beside its floor."""
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from bafe_nb import bafenet, bench, densesirst, examples, faithful, ledger, scenes, schedules, training
from bafe_nb.boxes import InputError
from bafe_nb.faithful import Piece

SMALL = Piece("bafe-small", changes=(("squeeze", 64), ("epochs", 2), ("repeats", 1), ("warm_up", 2)))
LATER = 3600


@pytest.fixture(scope="module")
def sets():
    config = scenes.SceneConfig(height=64, width=72)
    return scenes.Scenes(5, seed=1, config=config), scenes.Scenes(3, seed=1, config=config, split="test")


@pytest.fixture(scope="module")
def one_go(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, faithful.go_on(SMALL, *sets, folder, time.monotonic() + LATER)


def weights(folder): return bafenet.load_weights(folder / "weights.safetensors").state_dict()
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
def told(rows): return [{k: v for k, v in row.items() if k not in ("run", "seconds", "ms_per_image")} for row in rows]


def test_one_step_a_call_ends_with_the_same_bits(sets, one_go, tmp_path):
    rows, calls = None, 0
    while rows is None:
        rows, calls = faithful.go_on(SMALL, *sets, tmp_path, 0), calls + 1
        if rows is None:
            kept = sorted((tmp_path / "checkpoints").iterdir())[-1]
            assert int(kept.stem) == min(calls - (calls > 3), 6)          # steps 1 2 3, scores, 4 5 6, scores
    assert calls == 8 and equal(weights(tmp_path), weights(one_go[0])) and told(rows) == told(one_go[1])
    assert ledger.read(tmp_path / "losses.csv") == ledger.read(one_go[0] / "losses.csv")


def test_a_lost_checkpoint_costs_time_and_nothing_else(sets, one_go, tmp_path):
    for _ in range(5): assert faithful.go_on(SMALL, *sets, tmp_path, 0) is None
    sorted((tmp_path / "checkpoints").iterdir())[-1].write_bytes(b"cut")
    rows = faithful.go_on(SMALL, *sets, tmp_path, time.monotonic() + LATER)
    assert equal(weights(tmp_path), weights(one_go[0])) and told(rows) == told(one_go[1])
    epochs = ledger.read(tmp_path / "epochs.csv")
    assert [(r["epoch"], r["protocol"]) for r in epochs] == [(e, p) for e in (1, 2) for p in ("paper", "corrected")]


def test_scoring_leaves_the_run_alone(sets, one_go, tmp_path):
    training.train(faithful.config_of(SMALL), sets[0], tmp_path, progress=False)
    assert equal(weights(tmp_path), weights(one_go[0]))


def test_the_papers_model_in_two_calls(sets, tmp_path):
    piece = Piece("paper-r18-july", changes=(("squeeze", 64), ("epochs", 1), ("repeats", 1), ("batch", 5)))
    assert [bool(faithful.go_on(piece, *sets, tmp_path, 0)) for _ in range(2)] == [False, True]
    preset = bafenet.load_weights(tmp_path / "weights.safetensors").preset
    assert (preset.name, preset.size, preset.norm, preset.official) == ("paper-r18-july", 64, "trainable", True)


def test_rows_say_what_was_chosen(one_go):
    folder, rows = one_go
    epochs = ledger.read(folder / "epochs.csv")
    best = faithful.best_epoch(epochs)
    assert [(r["kind"], r.get("protocol"), r.get("epoch")) for r in rows] == [("train", None, None), *[(k, p, e) for k, e in (("evaluate", 2), ("selected", best)) for p in ("paper", "corrected")]]
    assert all("test set itself" in r["selected"] for r in rows[3:]) and not any("selected" in r for r in rows[:3])
    assert all(r["start"] == "random" and r["norm"] == "trainable" and r["preset"] == "bafe-small" and r["seed"] == 0 for r in rows)
    for row in rows[1:]:
        source = next(e for e in epochs if (e["epoch"], e["protocol"]) == (row["epoch"], row["protocol"]))
        assert source.items() <= row.items()


def test_best_epoch_is_the_authors_rule():
    rows = [dict(epoch=e, protocol=p, map07=m) for e, p, m in ((1, "paper", .1), (1, "corrected", .9), (2, "paper", .3), (3, "paper", .3), (4, "paper", .2))]
    assert faithful.best_epoch(rows) == 2


def test_plan_writes_each_row_once(sets, tmp_path):
    plan = (SMALL, replace(SMALL, seed=1, changes=SMALL.changes[:1] + (("epochs", 1), ("repeats", 1))))
    said, path = [], tmp_path / "ledger.csv"
    assert not faithful.run_plan(plan, *sets, tmp_path, 0, about=dict(data="scenes"), say=said.append)
    assert "call again" in said[-1] and not path.exists()
    while not faithful.run_plan(plan, *sets, tmp_path, 0, about=dict(data="scenes"), say=said.append): pass
    rows = ledger.read(path)
    assert [r["kind"] for r in rows] == ["train", "evaluate", "evaluate", "selected", "selected"] * 2 and {r["data"] for r in rows} == {"scenes"}
    assert len({r["run"] for r in rows}) == 2
    assert faithful.run_plan(plan, *sets, tmp_path, LATER, say=said.append) and ledger.read(path) == rows
    ledger.write(path, rows[:3])                              # as if the machine had gone in the middle of writing
    assert faithful.run_plan(plan, *sets, tmp_path, 0, say=said.append) and ledger.read(path) == rows


def test_pieces_become_configurations():
    for piece in faithful.PLAN[:6]:
        config = faithful.config_of(piece)
        assert config.schedule == schedules.SCHEDULES["paper"] and config.preset.size == 512 and config.preset.name == piece.preset
    assert [p.preset for p in faithful.PLAN[:4]] == ["paper-r18-july", "paper-r18", "paper-r50", "fcos-r50"]
    assert sorted(p.seed for p in faithful.PLAN if p == replace(Piece("paper-r18"), seed=p.seed)) == [0, 1, 2]
    config = faithful.config_of(Piece("fcos-r50", 3, changes=(("squeeze", 128), ("paste", "none"))), device="cpu", workers=2)
    assert (config.preset.size, config.schedule.squeeze, config.schedule.paste, config.seed, config.workers) == (128, 128, "none", 3, 2)
    assert config.schedule.name == "paper, squeeze 128, paste none"
    for piece, words in ((Piece("paper-r19"), "unknown preset"), (Piece("paper-r18", changes=(("side", 1),)), "not all are fields"), (Piece("paper-r18", schedule="p"), "unknown schedule"),
                         (Piece("paper-r18", changes=(("batch", 0),)), "batch is 0")):
        with pytest.raises(InputError, match=words): faithful.config_of(piece)


def test_imagenet_weights_freeze_the_normalisation(tmp_path):
    torch.manual_seed(0); resnet = bafenet.build("paper-r18").backbone
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    config = faithful.config_of(Piece("paper-r18", changes=(("squeeze", 64),)), imagenet=str(tmp_path / "resnet18.pth"))
    run = training.Run(config, examples.Examples(scenes.Scenes(2), config.schedule, 0))
    assert config.preset.norm == "frozen" and not run.model.backbone.bn1.weight.requires_grad and torch.equal(run.model.backbone.conv1.weight, resnet.conv1.weight)


def test_shortened_plans():
    assert faithful.shortened(faithful.PLAN) == faithful.PLAN
    assert faithful.shortened(faithful.PLAN, "fcos-r50", squeeze=64)[1].changes == (("paste", "none"), ("squeeze", 64))
    with pytest.raises(InputError, match="no run of 'bafe-hr'"): faithful.shortened(faithful.PLAN, "bafe-hr")


def same(a, b): return a.name == b.name and all(np.array_equal(getattr(a, f), getattr(b, f)) and getattr(a, f).dtype == getattr(b, f).dtype for f in ("image", "boxes", "sky", "targets", "real"))


@pytest.fixture
def devkit(tmp_path):
    """A SIRSTdevkit folder of seven made-up images: odd sizes, one in colour, one without a target."""
    samples = [scenes.scene(k, scenes.SceneConfig(height=64 + k, width=75 - k)) for k in range(7)]
    samples[3] = replace(samples[3], boxes=samples[3].boxes[:0], targets=np.zeros_like(samples[3].targets), real=samples[3].real[:0])
    root = tmp_path / "devkit"
    for place in densesirst.FOLDERS: (root / place).mkdir(parents=True)
    for k, s in enumerate(samples):
        image = np.repeat(s.image[..., None], 3, axis=2) if k == 5 else s.image
        cv2.imwrite(str(root / f"PNGImages/m{k}.png"), image)
        for place, mask in (("SIRST", s.targets), ("SkySeg", s.sky)): cv2.imwrite(str(root / place / f"PaletteMask/m{k}.png"), mask.astype(np.uint8))
        (root / f"SIRST/BBox/m{k}.xml").write_bytes(faithful._labels(s.boxes + (k == 2)))       # one file a pixel off, as 17 real ones are
    (root / "Splits").mkdir()
    for split, names in (("trainval_v2", range(5)), ("train_v2", range(3)), ("test_v2", range(5, 7))): (root / f"Splits/{split}.txt").write_text("\n".join(f"m{k}" for k in names))
    return root


def test_parts_carry_the_dataset(devkit, tmp_path):
    paths = faithful.pack(devkit, tmp_path / "parts", parts=3)
    assert [p.name for p in paths] == ["part-01-of-03.npz", "part-02-of-03.npz", "part-03-of-03.npz"] and sorted((tmp_path / "parts").iterdir()) == paths
    for k, path in enumerate(paths):                                              # one at a time, as if each came with a call of its own
        alone = tmp_path / f"call-{k}"; alone.mkdir(); path.replace(alone / path.name)
        assert faithful.unpack(alone, tmp_path / "back") == [p.name for p in paths[k + 1:]]
    for split in ("trainval_v2", "train_v2", "test_v2"):
        for reading in densesirst.READINGS:
            a, b = (densesirst.DenseSIRST(root, split, reading) for root in (devkit, tmp_path / "back"))
            assert a.names == b.names and all(same(a[i], b[i]) for i in range(len(a))), (split, reading)
    assert faithful.unpack(tmp_path / "call-0", tmp_path / "back") == []


def test_real_images_survive(data, tmp_path):
    names = densesirst.names(data, "all")
    table = {k: v for k, v in densesirst.images().items() if k in names}
    few = [n for n in names if table[n]["channels"] != "1" or table[n]["box_shifted"] == "yes"][:4] + names[:3] + names[-3:]
    part = faithful._arrays(data, few) | dict(splits=np.array('{"test_v2": []}'))
    faithful._unpack_part(part, tmp_path)
    for reading in densesirst.READINGS:
        assert all(same(densesirst.load(data, n, reading), densesirst.load(tmp_path, n, reading)) for n in few)


def test_parts_that_cannot_be(devkit, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="9 parts of 7 images"): faithful.pack(devkit, tmp_path / "p", 9)
    with pytest.raises(InputError, match="holds no part"): faithful.unpack(tmp_path / "p", tmp_path / "back")
    first = faithful.pack(devkit, tmp_path / "p", 2)[0]
    whole = first.read_bytes()
    for bad in (whole[:500], b"", whole[:3000] + bytes(200) + whole[3200:]):
        first.write_bytes(bad)
        with pytest.raises(InputError, match="part-01-of-02.npz is damaged"): faithful.unpack(tmp_path / "p", tmp_path / "back")
    first.write_bytes(whole)
    assert faithful.unpack(tmp_path / "p", tmp_path / "back") == []
    monkeypatch.setattr(faithful, "LARGEST", 1000)
    with pytest.raises(InputError, match="ask for more than 2 parts"): faithful.pack(devkit, tmp_path / "q", 2)
    assert list((tmp_path / "q").iterdir()) == []


def test_speed_is_bookkeeping():
    said = []
    rows = faithful.speed(presets=("bafe-small",), batches=(1,), size=64, runs=1, say=said.append, device="cpu")
    row = rows[0]
    seconds = row["milliseconds"] / 1e3
    assert row["images_per_second"] == pytest.approx(1 / seconds)
    assert row["utilisation"] == pytest.approx(bench.step_operations("bafe-small", 1, 64) / seconds / row["matrix_rate"])
    assert (row["kind"], row["bench"], row["batch"], row["precision"]) == ("bench", "faithful", 1, "float32")
    try: import torchvision  # noqa: F401
    except (ImportError, RuntimeError): assert len(rows) == 1 and "pip install torchvision" in said[-1]
    else: assert len(rows) == 2 and "torchvision" in rows[1]["name"]


def test_torchvisions_step_trains():
    try: step = faithful.torchvision_step(1, 64, "cpu", False)
    except InputError as error: pytest.skip(str(error))
    step()


def test_missing_optimiser_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)          # an import of it fails, as where it is not installed
    with pytest.raises(InputError, match="pip install 'pytorch-optimizer.*carry its wheel"): faithful.check_optimiser(faithful.PLAN)
    faithful.check_optimiser((Piece("bafe-small", schedule="small"),))


def bafe(capsys, *words):
    """Exit status and what was printed."""
    from bafe_nb import app
    status = app.main(list(map(str, words)))
    return status, "".join(capsys.readouterr())


def test_verb_takes_a_run_one_step_forward(tmp_path, capsys):
    words = ("faithful", "run", "--data", "scenes", "--only", "paper-r18-july", "--squeeze", 64, "--minutes", 0, "--out", tmp_path)
    for step in (1, 2):
        status, said = bafe(capsys, *words)
        assert status == 0 and "0 epochs done" in said and "the same command goes on" in said
        found = sorted(tmp_path.rglob("*.pt"))
        assert int(found[-1].stem) == step and "paper-r18-july_paper_squeeze-64_seed-0" in str(found[-1])


def test_verb_packs_and_unpacks(devkit, tmp_path, capsys):
    status, said = bafe(capsys, "faithful", "pack", "--data", devkit, "--out", tmp_path / "parts", "--parts", 2)
    assert status == 0 and said.count("bytes") == 2
    second = tmp_path / "parts/part-02-of-02.npz"; second.rename(tmp_path / second.name)
    assert "next: part-02-of-02.npz (1 missing)" in bafe(capsys, "faithful", "unpack", "--data", tmp_path / "parts", "--out", tmp_path / "back")[1]
    (tmp_path / second.name).rename(second)
    assert "is whole" in bafe(capsys, "faithful", "unpack", "--data", tmp_path / "parts", "--out", tmp_path / "back")[1]
    status, said = bafe(capsys, "faithful", "pack", "--data", "scenes")
    assert status == 2 and said.startswith("bafe: scenes need no packing") and said.count("\n") == 1
    assert bafe(capsys, "faithful", "run", "--data", devkit, "--only", "bafe-hr")[0] == 2
