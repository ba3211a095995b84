"""DenseSIRST: reading every irregularity, refusing bad files."""
import shutil

import numpy as np
import pytest
from devkit import H, W, kit, one_line, xml
from PIL import Image

from bafe_nb import boxes as box
from bafe_nb import densesirst as ds


# reading

def test_loads_what_was_written(kit):
    a, b = ds.load(kit, "a"), ds.load(kit, "b")
    assert a.boxes.tolist() == [[2, 3, 5, 6], [9, 1, 11, 5]] and a.boxes.dtype == np.float32
    assert a.image.dtype == np.uint8 and a.sky.dtype == bool and a.targets.dtype == bool and a.real.dtype == bool
    assert a.size == (H, W) and (a.height, a.width) == (H, W) and a.sky.sum() == 8 * W and a.targets.sum() == 9 + 8
    assert b.boxes.tolist() == [[6, 4, 9, 7]] and b.real.tolist() == [True]


def test_three_readings_of_the_boxes(kit):
    assert ds.load(kit, "b", "file").boxes.tolist() == [[7, 5, 10, 8]]
    assert ds.load(kit, "b", "paper").boxes.tolist() == [[6, 4, 9, 7]]
    assert ds.load(kit, "a", "paper").boxes.tolist() == [[1, 2, 4, 5], [8, 0, 10, 4]]
    assert "'voc'" in one_line(ds.load, kit, "a", "voc")


def test_mend_moves_only_boxes_that_then_fit():
    mask = np.zeros((20, 20), bool); mask[4:7, 4:8] = True; mask[12:14, 0:3] = True
    written = np.float32([[5, 5, 9, 8], [4, 4, 8, 7], [1, 13, 4, 15], [6, 6, 10, 9], [15, 15, 18, 18]])
    assert ds.mend(written, mask).tolist() == [[4, 4, 8, 7], [4, 4, 8, 7], [0, 12, 3, 14], [6, 6, 10, 9], [15, 15, 18, 18]]
    assert ds.mend(written[:0], mask).shape == (0, 4)


@pytest.mark.parametrize("seed", range(5))
def test_mend_agrees_with_the_components(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((60, 60)) < 0.03
    right = box.from_mask(mask)
    right = right[(right[:, 2:] < 60).all(1)]
    assert (ds.mend(right, mask) == right).all()


def test_an_image_without_targets(kit):
    (kit / "SIRST/BBox/a.xml").write_text(xml([]))
    sample = ds.load(kit, "a")
    assert sample.boxes.shape == (0, 4) and sample.real.shape == (0,)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_equal_channels_give_the_same_grey(tmp_path, mode):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).convert(mode).save(tmp_path / "x.png")
    assert (ds.read_image(tmp_path / "x.png") == levels).all()


def test_colour_becomes_luma(tmp_path):
    Image.fromarray(np.uint8([[[200, 100, 50]]])).save(tmp_path / "x.png")
    assert ds.read_image(tmp_path / "x.png")[0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


@pytest.mark.parametrize("palette", [[0, 0, 0, 255, 0, 0], [9, 9, 9, 9, 9, 9], [255, 255, 255, 0, 0, 0]])
@pytest.mark.parametrize("bits", [1, 8])
def test_masks_are_indices_whatever_the_palette(tmp_path, palette, bits):
    target = np.zeros((9, 13), np.uint8); target[2:4, 3:6] = 1
    picture = Image.fromarray(target); picture.putpalette(palette); picture.save(tmp_path / "m.png", bits=bits)
    assert (ds.read_mask(tmp_path / "m.png") == (target > 0)).all()


def test_the_cache_gives_equal_and_independent_samples(kit):
    data = ds.DenseSIRST(kit, "all")
    assert data.names == ["a", "b"] and len(data) == 2
    for i in range(2):
        first, second, fresh = data[i], data[i], ds.load(kit, data.names[i])
        for field in ("image", "boxes", "sky", "targets", "real"):
            assert (getattr(second, field) == getattr(fresh, field)).all() and getattr(second, field).dtype == getattr(fresh, field).dtype
        assert first.image is second.image
        with pytest.raises(ValueError): first.image[0, 0] = 1
        first.boxes[:] = 0; first.sky[:] = False
        assert (data[i].boxes == fresh.boxes).all() and data[i].sky.any()
    uncached = ds.DenseSIRST(kit, "all", "file", cache=False)
    assert uncached[1].boxes.tolist() == [[7, 5, 10, 8]] and uncached[-1].name == "b"
    with pytest.raises(IndexError): uncached[2]


# splits and folders

def test_split_rules(kit):
    assert ds.names(kit, "trainval_v2") == ["a"] and ds.names(kit, "val_v2") == ["a"] and ds.names(kit, "all") == ["a", "b"]
    assert "v1" in one_line(ds.names, kit, "test_v1")
    assert "'nope'" in one_line(ds.names, kit, "nope")
    assert "'../x'" in one_line(ds.names, kit, "../x")
    for text, word in (("", "names no image"), (" \n\n", "names no image"), ("a\nghost", "'ghost'"), ("a\n../a", "'../a'"), ("a\nb\na", "twice")):
        (kit / "Splits/mine.txt").write_text(text)
        assert word in one_line(ds.names, kit, "mine") and "mine.txt" in one_line(ds.names, kit, "mine")
    (kit / "Splits/mine.txt").write_bytes(b"b\r\na")
    assert ds.names(kit, "mine") == ["b", "a"]


def test_folders_that_are_no_devkit(kit, tmp_path, monkeypatch):
    assert "nowhere" in one_line(ds.DenseSIRST, tmp_path / "nowhere", "test_v2")
    assert str(kit) in one_line(ds.DenseSIRST, tmp_path, "test_v2")
    shutil.rmtree(kit / "SkySeg")
    assert "SkySeg/PaletteMask" in one_line(ds.DenseSIRST, kit, "test_v2")


def test_find_root(kit, tmp_path, monkeypatch):
    monkeypatch.setenv("BAFE_DATA", str(kit)); assert ds.find_root() == kit
    (tmp_path / "nbs").mkdir(); monkeypatch.chdir(tmp_path / "nbs")
    monkeypatch.setenv("BAFE_DATA", "SIRSTdevkit"); assert ds.find_root().resolve() == kit.resolve()
    monkeypatch.setenv("BAFE_DATA", "gone"); assert "BAFE_DATA" in one_line(ds.find_root)
    monkeypatch.delenv("BAFE_DATA"); assert ds.find_root() is None
    shutil.copytree(kit, tmp_path / "data/SIRSTdevkit"); assert ds.find_root().resolve() == (tmp_path / "data/SIRSTdevkit").resolve()


# bad input

def test_a_png_cut_anywhere_or_bent_anywhere_is_refused(kit):
    path = kit / "SkySeg/PaletteMask/a.png"
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        assert "a.png" in one_line(ds.load, kit, "a")
        bent = bytearray(whole); bent[n] ^= 4; path.write_bytes(bent)
        assert "a.png" in one_line(ds.load, kit, "a")


def test_missing_files_are_named(kit):
    for relative in ("PNGImages/a.png", "SIRST/PaletteMask/a.png", "SkySeg/PaletteMask/a.png", "SIRST/BBox/a.xml"):
        shutil.move(kit / relative, kit / "aside")
        assert relative in one_line(ds.load, kit, "a") and "fetch" in one_line(ds.load, kit, "a")
        shutil.move(kit / "aside", kit / relative)


def test_pictures_of_the_wrong_kind(kit):
    for array, relative, word in ((np.zeros((H, W), np.uint16), "PNGImages/a.png", "16 bits"), (np.zeros((H, W, 3), np.uint8), "SIRST/PaletteMask/a.png", "mask"),
                                  (np.zeros((W, H), np.uint8), "SkySeg/PaletteMask/a.png", f"{H} x {W}"), (np.zeros((H, W - 1), np.uint8), "SIRST/PaletteMask/a.png", f"{W - 1} x {H}")):
        keep = (kit / relative).read_bytes()
        Image.fromarray(array).save(kit / relative)
        message = one_line(ds.load, kit, "a")
        assert word in message and relative in message
        (kit / relative).write_bytes(keep)


def test_a_picture_that_claims_a_billion_pixels(kit):
    import struct, zlib
    head = struct.pack(">IIBBBBB", 1 << 16, 1 << 15, 8, 0, 0, 0, 0)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (kit / "PNGImages/a.png").write_bytes(ds.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    assert "65536 x 32768" in one_line(ds.load, kit, "a")
    (kit / "PNGImages/a.png").write_bytes(ds.PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    assert "a.png" in one_line(ds.load, kit, "a")


BOMB = "<!DOCTYPE a [" + "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 10}">' for i in range(9)) + "]><annotation>&e8;</annotation>"


@pytest.mark.parametrize("text, word", [
    (BOMB, "declares"), (BOMB.encode("utf-16"), "UTF-8"), ("<annotation><object>", "broken XML"), ("", "broken XML"), (b"\x00\x01", "broken XML"),
    (xml([(1, "one", 3, 4)]), "'one'"), (xml([(1, 2, 3, "")]), "ymax"), ("<annotation><object></object></annotation>", "xmin"),
    (xml([(1, 2, 3, "nan")]), "not finite"), (xml([(1, 2, 3, "inf")]), "not finite"), (xml([(1, 2, W + 1, 4)]), "outside"), (xml([(-1, 2, 3, 4)]), "outside"), (xml([(3, 2, 3, 4)]), "empty"), (xml([(5, 2, 3, 4)]), "empty")])
def test_bad_xml(kit, text, word):
    (kit / "SIRST/BBox/a.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = one_line(ds.load, kit, "a")
    assert word in message and "a.xml" in message


# tables

def test_tables_of_the_package():
    origins, images = ds.origins(), ds.images()
    assert set(origins) == set(images) and len(images) == ds.COUNTS["images"]
    assert sum(len(o.real) for o in origins.values()) == ds.COUNTS["targets"] and sum(o.real.sum() for o in origins.values()) == ds.COUNTS["real"]
    assert all(len(origins[n].boxes) == int(images[n]["targets"]) for n in images)
    assert all(np.isnan(o.added[o.real]).all() and (o.added[~o.real] >= 0).all() for o in origins.values())
    assert sum((o.added <= 2).sum() for o in origins.values()) == 131 and (origins["Misc_387"].added <= 2).sum() == 22
    shifted = [n for n in images if images[n]["box_shifted"]]
    assert len(shifted) == 17 and sum(len(origins[n].boxes) for n in shifted) == 21
    test = [n for n in images if images[n]["split"] == "test_v2"]
    assert sum(origins[n].real.sum() for n in test) == 150 and sum(len(origins[n].real) for n in test) == 3454


def test_near_duplicates_cross_the_split():
    twins, images = ds.near_duplicates(), ds.images()
    assert len(twins) == 26
    assert all(images[a]["split"] == "test_v2" and images[b]["split"] in ("train_v2", "val_v2") for a, b in twins.items())


def test_real_unless_the_table_says_pasted():
    origin = ds.origins()["Misc_67"]
    order = np.random.default_rng(1).permutation(len(origin.boxes))
    assert (ds.real_flags("Misc_67", origin.boxes[order]) == origin.real[order]).all()
    assert ds.real_flags("Misc_67", origin.boxes + 0.5).all() and ds.real_flags("mine", origin.boxes).all()


# real files

def test_boxes_equal_mask_extents_in_real_images(data):
    for name in ds.names(data, "all")[::max(1, len(ds.names(data, "all")) // 72)]:
        sample = ds.load(data, name, "file")
        corrected = ds.mend(sample.boxes, sample.targets)
        assert set(map(tuple, corrected.tolist())) == set(map(tuple, box.from_mask(sample.targets).tolist())), name
        assert (sample.boxes == ds.origins()[name].boxes).all() and (sample.real == ds.origins()[name].real).all()
        assert bool((sample.boxes != corrected).any()) == bool(ds.images()[name]["box_shifted"]), name


def test_real_colour_files_and_masks_are_read(data):
    rgba, shifted = ds.load(data, "Misc_21"), ds.load(data, "Misc_53")
    assert rgba.image.ndim == 2 and rgba.size == (211, 215) and len(shifted.boxes) == 2 and shifted.boxes.tolist()[0] == [114, 98, 119, 103]
    assert (ds.load(data, "Misc_53", "file").boxes.tolist()[0]) == [115, 99, 120, 104]
    for kind, mask in (("SIRST", shifted.targets), ("SkySeg", shifted.sky)):
        assert (ds.read_mask(data / f"{kind}/BinaryMask/Misc_53_pixels0.png") == mask).all()


def test_the_stale_xml_is_never_read(data, tmp_path):
    root = tmp_path / "SIRSTdevkit"
    for folder in (*ds.FOLDERS, "Splits"): (root / folder).mkdir(parents=True)
    for folder in ds.FOLDERS:
        for path in (data / folder).glob("Misc_67.*"): shutil.copyfile(path, root / folder / path.name)
    (root / "Splits/test_v2.txt").write_text("Misc_67")
    assert len(ds.DenseSIRST(root, "test_v2")[0].boxes) == 13
