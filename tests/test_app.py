"""The command line: every kind of bad input is one line that names the culprit, exit status 2, nothing half-written; every verb does its job."""
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from bafe_nb import app, bafenet, densesirst, ensemble, evaluation, ledger, scenes, scores


NANO = Path(__file__).parent.parent / "weights" / "bafe-hr-nano.safetensors"


@pytest.fixture()
def bafe(capsys):
    """Run a command line; returns (exit status, what stdout got, what stderr got)."""
    def run(*words):
        capsys.readouterr()
        status = app.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return status, out, err
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    bafenet.save_weights(bafenet.build("bafe-small"), path)
    return path


@pytest.fixture()
def devkit(tmp_path):
    """A tiny SIRSTdevkit of two scenes in the real layout."""
    root = tmp_path / "SIRSTdevkit"
    for folder in ("PNGImages", "SIRST/BBox", "SIRST/PaletteMask", "SIRST/BinaryMask", "SkySeg/PaletteMask", "SkySeg/BinaryMask", "Splits"): (root / folder).mkdir(parents=True)
    samples = [s for s in map(scenes.scene, range(40)) if len(s.boxes) > 2][:2]
    for s in samples:
        cv2.imwrite(str(root / f"PNGImages/{s.name}.png"), s.image)
        for part, mask in (("SIRST", s.targets), ("SkySeg", s.sky)):
            cv2.imwrite(str(root / part / f"PaletteMask/{s.name}.png"), mask.astype(np.uint8))
            cv2.imwrite(str(root / part / f"BinaryMask/{s.name}_pixels0.png"), mask.astype(np.uint8) * 255)
        write_xml(root, s.name, s.boxes, s.size)
    (root / "Splits/test_v2.txt").write_text("\n".join(s.name for s in samples))
    return root, samples


def write_xml(root, name, boxes, size=(256, 256)):
    objects = "".join("<object><name>Target</name><bndbox>" + "".join(f"<{t}>{int(v)}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), b)) + "</bndbox></object>" for b in boxes)
    (root / f"SIRST/BBox/{name}.xml").write_text(f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>{objects}</annotation>")


def refused(result, *words):
    """One line on stderr, status 2, no traceback, every word in it."""
    status, out, err = result
    assert status == 2, (status, out, err)
    assert err.count("\n") == 1 and err.startswith("bafe: ") and "Traceback" not in err
    for word in words: assert str(word) in err, (word, err)


def test_the_tiny_devkit_is_read_and_scored(bafe, devkit, tmp_path):
    root, samples = devkit
    scores.write_detections(tmp_path / "truth.json", {s.name: np.c_[s.boxes, np.ones(len(s.boxes))] for s in samples})
    status, _, err = bafe("score", tmp_path / "truth.json", "--data", root, "--split", "test_v2", "--json", tmp_path / "row.json")
    assert status == 0, err
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["map12"] == 1 and row["recall"] == 1 and row["targets"] == sum(len(s.boxes) for s in samples)


@pytest.mark.parametrize("words, culprit", [
    (("trian",), "trian"), (("train", "bafe-smal", "--data", "scenes", "--out", "x"), "bafe-smal"), ((), "verb"), (("data",), "verb"),
    (("train", "bafe-small", "--data", "no/such/folder", "--out", "x"), "no/such/folder"), (("evaluate", "nowhere", "--data", "scenes"), "nowhere"),
    (("score", "missing.json", "--data", "scenes"), "missing.json"), (("detect", "nothing.safetensors", "a.png", "--out", "x"), "nothing.safetensors"),
    (("bench", "cake"), "cake"), (("reproduce", "--data", "no/such/folder"), "no/such/folder"), (("reproduce", "--preset", "paper-r19"), "paper-r19"),
    (("score", "x.json", "--data", "scenes", "--protocol", "papre"), "papre"), (("data", "verify", "no/such"), "no/such"),
    (("import-official", "no.pth", "out.safetensors"), "no.pth"), (("train", "bafe-small", "--data", "scenes", "--out", "x", "--seed", "one"), "one"),
    (("train", "bafe-small", "--data", "scenes", "--out", "x", "--schedule", "fast"), "fast")])
def test_wrong_words(bafe, words, culprit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.delenv("BAFE_DATA", raising=False)
    refused(bafe(*words), culprit)
    assert not list(tmp_path.iterdir())


def test_no_data_named(bafe, weights, monkeypatch):
    monkeypatch.delenv("BAFE_DATA", raising=False)
    refused(bafe("evaluate", weights), "--data")


def damage_missing(root, s): (root / f"PNGImages/{s.name}.png").unlink(); return f"{s.name}.png"
def damage_truncated(root, s):
    path = root / f"PNGImages/{s.name}.png"; path.write_bytes(path.read_bytes()[:-200]); return f"{s.name}.png"
def damage_xml(root, s): (root / f"SIRST/BBox/{s.name}.xml").write_text("<annotation><object>"); return f"{s.name}.xml"
def damage_bomb(root, s):
    bomb = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>'
    (root / f"SIRST/BBox/{s.name}.xml").write_text(bomb); return f"{s.name}.xml"
def damage_outside(root, s): write_xml(root, s.name, np.r_[s.boxes, [[250, 250, 260, 254]]]); return f"{s.name}.xml"
def damage_mask(root, s):
    cv2.imwrite(str(root / f"SkySeg/PaletteMask/{s.name}.png"), np.zeros((100, 100), np.uint8)); return f"{s.name}.png"
def damage_split(root, s): (root / "Splits/test_v2.txt").write_text("\n"); return "test_v2"
def damage_name(root, s): (root / "Splits/test_v2.txt").write_text(f"{s.name}\nnobody"); return "nobody"


@pytest.mark.parametrize("words, culprits", [
    (("train", "bafe-small", "--data", "scenes", "--out", "r", "--device", "gpu"), ("--device", "gpu", "cuda")), (("train", "bafe-small", "--data", "scenes", "--out", "r", "--workers", "-1"), ("--workers", "from 0")),
    (("train", "bafe-small", "--data", "scenes", "--out", "taken"), ("taken is a file",)), (("train", "bafe-small", "--data", "scenes", "--out", "r", "--imagenet", "x.pth"), ("bafe-small", "for a ResNet")),
    (("train", "bafe-small", "--data", "scenes", "--out", "r", "--ledger", "broken.csv"), ("broken.csv", "another number of cells")), (("evaluate", "top_hat", "--data", "scenes", "--ledger", "notes.txt"), ("notes.txt is no ledger",)), (("bench", "bagcp", "--runs", "0"), ("--runs", "from 1")), (("tables", "--ledger", "picture.png"), ("picture.png is no CSV",)),
    (("tables", "--ledger", "nothere.csv"), ("nothere.csv has no rows",)), (("tables", "--ledger", "list.json"), ("list.json is no ledger",)), (("figures", "--results", "nowhere"), ("nowhere is no folder",)),
    (("detect", "w", "i.png", "--out", "f", "--threshold", "nan"), ("--threshold", "from 0 to 1")), (("evaluate", "top_hat", "--data", "scenes", "--threshold", "-1"), ("--threshold", "from 0")),
    (("detect", "w", "i.png", "--out", "f", "--tile", "-5"), ("--tile", "from 32")), (("evaluate", "top_hat", "--data", "scenes", "--protocol", "papr"), ("--protocol", "papr", "corrected")),
    (("evaluate", "top_hat", "--data", "scenes", "--detections", "gone/d.json"), ("gone is not there",)), (("evaluate", "top_hat", "--data", "scenes", "--ledger", "folder"), ("folder is a folder",)),
    (("detect", "w", "i.png", "--out", "taken"), ("taken is a file",)), (("evaluate", "tophat", "--data", "scenes"), ("tophat", "top_hat"))])
def test_wrong_words_are_refused_before_the_work(bafe, tmp_path, monkeypatch, words, culprits):
    monkeypatch.chdir(tmp_path); (tmp_path / "folder").mkdir(); (tmp_path / "taken").write_text(""); (tmp_path / "list.json").write_text("[]")
    (tmp_path / "broken.csv").write_text("kind,preset\ntrain,toy,7\n"); (tmp_path / "notes.txt").write_text("My notes\n\nfirst line\n")
    cv2.imwrite("picture.png", scenes.scene(0).image); before = sorted(tmp_path.iterdir())
    refused(bafe(*words), *culprits)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", [damage_missing, damage_truncated, damage_xml, damage_bomb, damage_outside, damage_mask, damage_split, damage_name],
                         ids=lambda f: f.__name__.removeprefix("damage_"))
def test_damaged_data(bafe, devkit, weights, tmp_path, damage):
    root, samples = devkit
    culprit = damage(root, samples[0])
    refused(bafe("evaluate", weights, "--data", root, "--json", tmp_path / "row.json", "--detections", tmp_path / "found.json"), culprit)
    assert not (tmp_path / "row.json").exists() and not (tmp_path / "found.json").exists()


def test_wrong_weights(bafe, tmp_path, weights):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64), np.uint8))
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "half.safetensors").write_bytes(weights.read_bytes()[:-1000])
    for name in ("text", "half"):
        refused(bafe("detect", tmp_path / f"{name}.safetensors", tmp_path / "a.png", "--out", tmp_path / "out"), f"{name}.safetensors")
    refused(bafe("import-official", tmp_path / "text.safetensors", tmp_path / "o.safetensors"), "text.safetensors")
    assert not (tmp_path / "out").exists() and not (tmp_path / "o.safetensors").exists()


def test_detect_leaves_nothing_when_one_image_is_bad(bafe, tmp_path, weights):
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((64, 64), np.uint8)); (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    refused(bafe("detect", weights, tmp_path / "good.png", tmp_path / "bad.png", "--out", tmp_path / "out"), "bad.png")
    assert not (tmp_path / "out").exists()


def test_detect_refuses_two_images_of_one_name(bafe, tmp_path, weights):
    for folder in ("a", "b"): (tmp_path / folder).mkdir(); cv2.imwrite(str(tmp_path / folder / "x.png"), np.zeros((64, 64), np.uint8))
    refused(bafe("detect", weights, tmp_path / "a/x.png", tmp_path / "b/x.png", "--out", tmp_path / "out"), "x.png")


def test_views_are_counted_and_a_filter_has_none(bafe, tmp_path):
    cv2.imwrite(str(tmp_path / "i.png"), scenes.scene(6).image); found = {}
    for k, words in enumerate((("--reflections",), ("--views", 4), ("--views", 8), ())):      # a flag before the image does not swallow it
        assert bafe("detect", NANO, *words, tmp_path / "i.png", "--out", tmp_path / str(k))[0] == 0
        found[words] = (tmp_path / str(k) / "detections.json").read_text()
    assert found["--reflections",] == found["--views", 4] and len(set(found.values())) == 3
    refused(bafe("detect", NANO, tmp_path / "i.png", "--views", 3, "--out", tmp_path / "x"), "--views")
    assert bafe("detect", NANO, "--reading", "best", "--views", 4, "--guesses", 1, "--least", 0.05, tmp_path / "i.png", "--out", tmp_path / "same")[0] == 0
    assert (tmp_path / "same/detections.json").read_text() == found["--views", 4]          # options change single parts of a reading
    for words in (("--guesses", 3), ("--views", 8), ("--least", 0.02), ("--reading", "plain")): refused(bafe("evaluate", "top_hat", "--data", "scenes", *words), "top_hat is a filter")


def test_detect_writes_masks_of_targets_and_sky(bafe, tmp_path):
    sample = next(s for s in map(scenes.scene, range(20)) if 0.2 < s.sky.mean() < 0.8 and len(s.boxes)); cv2.imwrite(str(tmp_path / "i.png"), sample.image)
    assert bafe("detect", NANO, tmp_path / "i.png", "--masks", "--out", tmp_path / "out")[0] == 0
    p = evaluation.predict(evaluation.read_model(NANO)[0], sample)
    for folder, mask in (("targets", p.mask), ("sky", p.sky)): assert np.array_equal(cv2.imread(str(tmp_path / "out" / folder / "i.png"), 0), 255 * mask), folder
    assert p.mask.any() and not p.sky.all()
    assert bafe("detect", NANO, tmp_path / "i.png", "--out", tmp_path / "plain")[0] == 0 and not (tmp_path / "plain/targets").exists()
    refused(bafe("detect", NANO, tmp_path / "out/sky/i.png", "--masks", "--out", tmp_path / "out"), "folder of i.png")


def test_detect_does_not_write_over_its_images(bafe, tmp_path, weights):
    path = tmp_path / "x.png"; cv2.imwrite(str(path), np.zeros((64, 64), np.uint8)); before = path.read_bytes()
    refused(bafe("detect", weights, path, "--out", tmp_path), "folder of x.png", "name another")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_detect_moves_minus_one_boxes_back_as_evaluate_does(bafe, tmp_path):
    """A run that was taught minus-one boxes says so in config.json beside its weights."""
    sample, found = next(s for s in map(scenes.scene, range(20)) if len(s.boxes) > 2), []
    cv2.imwrite(str(tmp_path / "i.png"), sample.image); model, _ = evaluation.read_model(NANO)
    for boxes in ("corrected", "paper"):
        run = tmp_path / boxes; run.mkdir(); (run / "weights.safetensors").write_bytes(NANO.read_bytes())
        (run / "config.json").write_text(json.dumps(dict(seed=0, schedule=dict(boxes=boxes))))
        assert bafe("detect", run / "weights.safetensors", tmp_path / "i.png", "--out", tmp_path / f"out-{boxes}")[0] == 0
        found.append(scores.read_detections(tmp_path / f"out-{boxes}/detections.json")["i"])
    plain = evaluation.predict(model, sample).detections
    assert np.allclose(found[0], plain, atol=1e-3) and np.allclose(found[1], evaluation.predict(model, sample, boxes="paper").detections, atol=1e-3) and not np.allclose(found[0], found[1])


def test_pictures_of_thin_strips_stay_small():
    assert app.annotated(np.zeros((2, 2400), np.uint8), np.zeros((0, 5)), 0.3).shape == (2, 2400, 3) and app.annotated(np.zeros((100, 300), np.uint8), np.zeros((0, 5)), 0.3).shape == (900, 2700, 3)


def test_a_split_of_ones_own_and_the_whole(bafe, devkit, tmp_path):
    root, samples = devkit; path = tmp_path / "l.csv"
    (root / "Splits/mine.txt").write_text(samples[0].name); (root / "Splits/trainval_v2.txt").write_text(samples[0].name); (root / "Splits/test_v2.txt").write_text(samples[1].name)
    for split, images in (("mine", 1), ("all", 2)):
        assert bafe("evaluate", "top_hat", "--data", root, "--split", split, "--ledger", path)[0] == 0
        assert ledger.read(path)[-1]["data"] == f"SIRSTdevkit, {images} images", "scenes are not DenseSIRST's images"
    assert bafe("data", "stats", root, "--ledger", path)[0] == 0 and ledger.read(path)[-1]["data"] == "SIRSTdevkit, 2 images"
    assert densesirst.called(densesirst.DenseSIRST(root, "mine"), densesirst.DenseSIRST(root, "all")) == "SIRSTdevkit, 1 + 2 images"


def test_part_of_the_dataset_is_called_so(data):
    train, test = (densesirst.DenseSIRST(data, split) for split in ("trainval_v2", "test_v2"))
    train.names = train.names[:5]
    assert densesirst.called(train, test) == f"DenseSIRST, 5 + {len(test)} images"


def test_detect_writes_a_picture_an_image_and_one_list(bafe, tmp_path, weights):
    for k, size in enumerate(((64, 80), (257, 131))): cv2.imwrite(str(tmp_path / f"i{k}.png"), np.random.default_rng(k).integers(0, 255, size, dtype=np.uint8))
    status, out, err = bafe("detect", weights, tmp_path / "i0.png", tmp_path / "i1.png", "--out", tmp_path / "out", "--threshold", 0.001)
    assert status == 0, err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["detections.json", "i0.png", "i1.png"]
    entries = json.loads((tmp_path / "out/detections.json").read_text())
    assert all(set(e) == {"image_id", "category_id", "bbox", "score"} and e["image_id"] in ("i0", "i1") for e in entries)


def test_presets_and_their_counts(bafe, tmp_path):
    assert bafe("presets", "--json", tmp_path / "p.json")[0] == 0
    rows = {r["name"]: r for r in json.loads((tmp_path / "p.json").read_text())}
    assert rows["paper-r18-july"]["parameters"] == 22_309_550 and round(rows["paper-r18-july"]["multiply_adds"] / 1e9, 3) == 57.654
    assert rows["paper-r18"]["parameters"] == 22_562_873 and rows["paper-r18"]["multiply_adds"] == 60_179_697_664
    assert rows["paper-r50"]["parameters"] == 35_582_521 and rows["paper-r50"]["multiply_adds"] == 71_639_322_624


def test_train_evaluate_and_resume_from_the_command_line(bafe, tmp_path):
    words = ("train", "bafe-small", "--data", "scenes", "--split", "val_v2", "--out", tmp_path / "run", "--epochs", 1, "--batch", 32, "--ledger", tmp_path / "l.csv")
    assert bafe(*words)[0] == 0
    refused(bafe(*words), "run")
    assert bafe(*words, "--resume")[0] == 0
    refused(bafe(*words, "--resume", "--seed", 1), "seed")
    status, _, err = bafe("evaluate", tmp_path / "run", "--data", "scenes", "--split", "val_v2", "--json", tmp_path / "row.json", "--detections", tmp_path / "found.json", "--ledger", tmp_path / "l.csv")
    assert status == 0, err
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["preset"] == "bafe-small" and row["protocol"] == "corrected" and 0 <= row["map12"] <= 1 and row["sky_iou"] is not None
    scores.read_detections(tmp_path / "found.json")


def test_masks_write_a_row_a_level(bafe, devkit, weights, tmp_path):
    nano = Path(__file__).parent.parent / "weights" / "bafe-hr-nano.safetensors"
    status, out, err = bafe("masks", nano, "--data", devkit[0], "--ledger", tmp_path / "l.csv")
    assert status == 0, err
    rows = ledger.read(tmp_path / "l.csv")
    assert [r["threshold"] for r in rows] == list(evaluation.LEVELS) and all(r["kind"] == "masks" and r["split"] == "test_v2" and r["images"] == 2 for r in rows)
    assert all(f"Pd {r['pd_mask']:.4f}" in out for r in rows) and rows[0]["pd_mask"] > 0.8
    refused(bafe("masks", weights, "--data", devkit[0], "--ledger", tmp_path / "none.csv"), "bafe-small")
    assert not (tmp_path / "none.csv").exists()


def test_the_installed_command_exits_with_2_and_one_line(tmp_path):
    done = subprocess.run([str(Path(sys.executable).parent / "bafe"), "detect", "x.safetensors", "y.png", "--out", "z"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "x.safetensors" in done.stderr


def test_verify_tells_a_subset_from_the_whole(bafe, data):
    status, out, err = bafe("data", "verify", data)
    assert "images" in out and status in (0, 1)
    assert (status == 0) == (len(densesirst.names(data, "trainval_v2")) == 768)


def test_bench_prints_and_keeps_its_rows(bafe, tmp_path):
    status, out, err = bafe("bench", "bagcp", "--runs", 1, "--ledger", tmp_path / "l.csv")
    assert status == 0, err
    rows = ledger.read(tmp_path / "l.csv")
    assert len(rows) == 5 and all(r["kind"] == "bench" and r["threads"] == 1 and f"{r['milliseconds']:.3f} ms" in out for r in rows)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_deep_images_are_detected_in_with_two_levels(bafe, tmp_path, ending):
    """Sixteen bits that hold the same picture give the same detections; without levels, with wrong ones, and on colour, one line says what to do."""
    image, deep, colour = scenes.scene(5).image, tmp_path / f"deep.{ending}", tmp_path / "colour.png"
    cv2.imwrite(str(tmp_path / "flat.png"), image); cv2.imwrite(str(deep), 7000 + 8 * image.astype(np.uint16)); cv2.imwrite(str(colour), np.dstack([image] * 3))
    assert bafe("detect", NANO, tmp_path / "flat.png", "--out", tmp_path / "a")[0] == 0
    assert bafe("detect", NANO, deep, "--out", tmp_path / "b", "--levels", 7000, 7000 + 8 * 255)[0] == 0
    found = [scores.read_detections(tmp_path / folder / "detections.json")[name] for folder, name in (("a", "flat"), ("b", "deep"))]
    assert np.array_equal(*found) and len(found[0]) and (tmp_path / "b/deep.png").exists()
    for words, said in (((deep,), ending == "png" and "16 bits" or "not a PNG"), ((deep, "--levels", 9, 3), "darkest level first"), ((colour, "--levels", 0, 255), "grey images"), ((tmp_path / "none.png", "--levels", 0, 255), "none.png")):
        refused(bafe("detect", NANO, *words, "--out", tmp_path / "c"), said)
        assert not (tmp_path / "c").exists()


def test_the_sky_is_asked_from_the_command_line(bafe, devkit, tmp_path):
    root, samples = devkit
    overview, table = NANO.with_name("overview.safetensors"), tmp_path / "l.csv"
    asking = ("--sky-weight", 0.7, "--overview", overview)
    for words in ((), asking): assert bafe("evaluate", NANO, "--data", root, "--ledger", table, "--detections", tmp_path / f"d{len(words)}.json", *words)[0] == 0
    assert bafe("evaluate", overview, "--data", root, "--ledger", table)[0] == 0
    assert bafe("masks", NANO, "--data", root, "--ledger", table, *asking)[0] == 0
    assert bafe("endure", NANO, "--data", root, "--ledger", table, *asking)[0] == 0
    rows = ledger.read(table)
    assert [r["preset"] for r in rows[:3]] == ["bafe-hr-nano", "bafe-hr-nano, sky 0.7, overview", "overview"] and rows[2]["kind"] == "sky" and "map12" not in rows[2]
    assert {r["preset"] for r in rows[3:]} == {"bafe-hr-nano, sky 0.7, overview"} and {r["kind"] for r in rows[3:]} == {"masks", "robustness"}
    plain, asked = (scores.read_detections(tmp_path / f"d{n}.json")[samples[0].name] for n in (0, len(asking)))
    assert len(plain) == len(asked) and asked[:, 4].sum() < plain[:, 4].sum()
    cv2.imwrite(str(tmp_path / "one.png"), samples[0].image)
    assert bafe("detect", NANO, tmp_path / "one.png", "--out", tmp_path / "one", *asking)[0] == 0
    assert np.allclose(scores.read_detections(tmp_path / "one/detections.json")["one"], asked, atol=1e-4)


@pytest.mark.parametrize("words, said", [(("evaluate", "top_hat", "--sky-weight", 0.5), "filter"), (("endure", "top_hat", "--sky-weight", 0.5), "filter"), (("evaluate", NANO, "--sky-weight", 1.5), "1.5"),
                                         (("evaluate", NANO, "--overview", NANO), "no overview"), (("evaluate", NANO.with_name("overview.safetensors"), "--sky-weight", 0.5), "finds no targets")])
def test_a_sky_that_cannot_be_asked_is_refused(bafe, devkit, words, said): refused(bafe(*words, "--data", devkit[0]), said)


def test_every_verb_that_reads_networks_takes_several(bafe, devkit, tmp_path):
    (root, samples), table, words = devkit, tmp_path / "l.csv", ("--with", NANO.with_name("bafe-hr.safetensors"))
    for verb in ("evaluate", "masks", "endure"): assert bafe(verb, NANO, "--data", root, "--ledger", table, *words)[0] == 0
    assert {(r["kind"], r["preset"]) for r in ledger.read(table)} == {(kind, "bafe-hr-nano + bafe-hr") for kind in ("evaluate", "masks", "robustness")}
    cv2.imwrite(str(tmp_path / "i.png"), samples[0].image)
    assert bafe("detect", NANO, tmp_path / "i.png", "--out", tmp_path / "out", *words)[0] == 0
    found = scores.read_detections(tmp_path / "out/detections.json")["i"]
    assert np.allclose(found, evaluation.predict(ensemble.read([NANO, words[1]]), samples[0]).detections, atol=1e-3)
    refused(bafe("evaluate", "top_hat", *words, "--data", root), "other networks")
    refused(bafe("evaluate", NANO, "--with", "gone", "--data", root), "gone")
