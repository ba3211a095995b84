"""DenseSIRST: reading every irregularity, refusing bad files, fetching, verifying, counting."""
import hashlib
import http.server
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bafe_nb import boxes as box
from bafe_nb import densesirst as ds
from bafe_nb.boxes import InputError

H, W = 12, 17


def xml(boxes, head=""):
    items = "".join("<object><name>Target</name><bndbox>" + "".join(f"<{t}>{v}</{t}>" for t, v in zip(ds.CORNERS, b)) + "</bndbox></object>" for b in boxes)
    return f"{head}<annotation>{items}</annotation>"


@pytest.fixture
def kit(tmp_path):
    """A devkit of two images, `a` with two targets and `b` with one whose box is shifted."""
    root = tmp_path / "SIRSTdevkit"
    for folder in (*ds.FOLDERS, "Splits"): (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, corners, shifted in (("a", [(2, 3, 5, 6), (9, 1, 11, 5)], 0), ("b", [(6, 4, 9, 7)], 1)):
        targets, sky = np.zeros((H, W), np.uint8), np.zeros((H, W), np.uint8)
        for x1, y1, x2, y2 in corners: targets[y1:y2, x1:x2] = 1
        sky[:8] = 1
        Image.fromarray(rng.integers(0, 200, (H, W), dtype=np.uint8)).save(root / f"PNGImages/{name}.png")
        Image.fromarray(targets).save(root / f"SIRST/PaletteMask/{name}.png")
        Image.fromarray(sky).save(root / f"SkySeg/PaletteMask/{name}.png")
        (root / f"SIRST/BBox/{name}.xml").write_text(xml([[v + shifted for v in c] for c in corners]))
    for split, text in dict(trainval_v2="a", train_v2="a", val_v2="a\n", test_v2="b", test_v1="a\nb").items(): (root / f"Splits/{split}.txt").write_text(text)
    return root


def one_line(call, *args, **keywords):
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught: call(*args, **keywords)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


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


def test_published_tables():
    assert [len(ds.published(n)) for n in ("datasets", "detectors", "adascope", "segmentation")] == [5, 33, 21, 2]
    ours = [r for r in ds.published("detectors") if "BAFE" in r["method"]]
    assert {r["map07"] for r in ours} == {"0.283", "0.274"} and all(r["source"] for n in ("datasets", "detectors") for r in ds.published(n))
    assert "'x'" in one_line(ds.published, "x")


# statistics

def test_measure_by_hand(kit):
    a = ds.load(kit, "a")
    image = np.full((H, W), 10, np.uint8); image[a.targets] = 30; image[3, 2] = 90
    m = ds.measure(ds.dataclasses.replace(a, image=image))
    assert m["area"].tolist() == [9, 8] and m["contour_area"].tolist() == [4, 3] and m["width"].tolist() == [3, 2]
    np.testing.assert_allclose(m["contrast"], [(8 * 30 + 90) / 90, 3])
    apart = np.hypot(10 - 3.5, 3 - 4.5)
    np.testing.assert_allclose(m["distance"], [apart, apart], rtol=1e-6)
    assert m["cluster"].tolist() == [2, 2] and m["brightest"].tolist() == [1, 0] and m["in_sky"].tolist() == [1, 1]


def test_clusters_are_chains():
    line = np.float32([[x, 0, x + 2, 2] for x in (40, 0, 20, 10, 60.5)])
    assert ds.clusters(line).tolist() == [0, 1, 1, 1, 4] and ds.clusters(line, 20).tolist() == [0, 0, 0, 0, 4]


def test_statistics_of_the_kit(kit):
    row = ds.statistics(kit, progress=False)
    assert (row["images"], row["targets"], row["real"], row["pasted"], row["clusters"]) == (2, 3, 3, 0, 1)
    assert row["mean_area"] == pytest.approx(26 / 3) and row["most_frequent_size"] == "3 x 3" and row["targets_per_cluster"] == 2 and row["sky_fraction"] == pytest.approx(8 / H)
    assert all(v is None or isinstance(v, (int, float, str)) and not isinstance(v, np.generic) for v in row.values()) and row["mean_area_pasted"] is None
    table = ds.dataset_table(row)
    assert len(table) == 7 and table[-1]["mean_area"] == 8.7 and table[-1]["targets"] == 3 and table[4]["targets"] == 13655
    assert "empty" in one_line(ds.statistics, [])


# verify

def test_verify_lists_what_is_odd(kit):
    Image.fromarray(np.zeros((H, W, 3), np.uint8) + np.uint8([1, 2, 3])).save(kit / "PNGImages/a.png")
    Image.fromarray(ds.read_mask(kit / "SIRST/PaletteMask/a.png").astype(np.uint8)).convert("P").save(kit / "SIRST/PaletteMask/a.png")
    (kit / "SIRST/BinaryMask").mkdir(); (kit / "SIRST/BinaryMask/a.xml").write_text(xml([(1, 1, 2, 2)]))
    Image.fromarray(np.zeros((H, W), np.uint8)).save(kit / "SIRST/BinaryMask/b_pixels0.png")
    (kit / "SIRST/Point_label").mkdir(); (kit / "SIRST/Point_label/a_pixels0.txt").write_text("3 4\n10 3"); (kit / "SIRST/Point_label/b_pixels0.txt").write_text("3 4\n10 3\n")
    report = ds.verify(kit, progress=False)
    f = report.findings
    assert report.usable and not report.complete and report.counts == dict(images=2, targets=3, real=3, trainval_v2=1, train_v2=1, val_v2=1, test_v2=1)
    assert f["colour"] == f["unequal"] == f["stale"] == ["a"] and f["palette"] == ["a"] and f["shifted"] == ["b"] and f["masks"] == ["b"] and f["points"] == ["b"]
    assert f["overlap"] == ["a"] and "val_v2.txt" not in f["newline"] and "test_v2.txt" in f["newline"] and "PNGImages/a.png" in f["extra"] and len(f["missing"]) + len(f["wrong"]) == 9226
    assert "not the full DenseSIRST" in str(report) and "1,024" in str(report)


def test_verify_goes_on_after_a_broken_file(kit):
    (kit / "PNGImages/a.png").write_bytes(b"nothing")
    (kit / "Splits/train_v2.txt").write_text("a\nCasper")
    report = ds.verify(kit, progress=False)
    assert not report.usable and report.counts["targets"] == 1 and len(report.findings["unreadable"]) == 2
    assert "files are broken" in str(report) and "Casper" in str(report)


# fetch

def archive(path, kit, prefix="DenseSIRST-x/data/SIRSTdevkit", skip=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name in ds.hashes(kit):
            if name not in skip: z.write(kit / name, f"{prefix}/{name}" if prefix else name)
    return path


def test_fetch_from_a_folder_then_only_what_is_missing_or_wrong(kit, tmp_path):
    wanted, dest = ds.hashes(kit), tmp_path / "new/SIRSTdevkit"
    first = ds.fetch(dest, kit, progress=False, wanted=wanted)
    assert (first.present, first.fetched, first.wrong) == (0, len(wanted), ()) and ds.hashes(dest) == wanted
    (dest / "PNGImages/a.png").write_bytes(b"bad"); (dest / "PNGImages/b.png").unlink()
    untouched = (dest / "Splits/test_v2.txt").stat().st_mtime_ns
    again = ds.fetch(dest, kit.parent, progress=False, wanted=wanted)
    assert (again.present, again.fetched) == (len(wanted) - 2, 2) and (dest / "Splits/test_v2.txt").stat().st_mtime_ns == untouched and ds.hashes(dest) == wanted
    assert ds.fetch(dest, tmp_path / "nowhere", progress=False, wanted=wanted).fetched == 0


@pytest.mark.parametrize("prefix", ["", "SIRSTdevkit", "DenseSIRST-x/data/SIRSTdevkit"])
def test_fetch_from_a_zip(kit, tmp_path, prefix):
    wanted = ds.hashes(kit)
    report = ds.fetch(tmp_path / "new", archive(tmp_path / "x.zip", kit, prefix, skip=["PNGImages/b.png"]), progress=False, wanted=wanted)
    assert report.wrong == ("PNGImages/b.png",) and report.fetched == len(wanted) - 1 and "PNGImages/b.png" in str(report)


def test_a_hostile_zip_writes_nothing_of_its_own(kit, tmp_path):
    wanted = ds.hashes(kit)
    with zipfile.ZipFile(archive(tmp_path / "x.zip", kit, skip=["PNGImages/a.png", "PNGImages/b.png"]), "a", zipfile.ZIP_DEFLATED) as z:
        z.writestr("DenseSIRST-x/data/SIRSTdevkit/../../../../climbed.txt", "x"); z.writestr("/absolute.txt", "x")
        link = zipfile.ZipInfo("DenseSIRST-x/data/SIRSTdevkit/PNGImages/a.png"); link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd"); z.writestr("DenseSIRST-x/data/SIRSTdevkit/PNGImages/b.png", b"\0" * 50_000_000)
    report = ds.fetch(tmp_path / "new", tmp_path / "x.zip", progress=False, wanted=wanted)
    assert set(report.wrong) == {"PNGImages/a.png", "PNGImages/b.png"}
    assert set(ds.hashes(tmp_path / "new")) == set(wanted) - set(report.wrong) and not list(tmp_path.rglob("climbed.txt"))


def test_sources_that_cannot_be_used(kit, tmp_path):
    wanted = ds.hashes(kit)
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 not really"); (tmp_path / "empty").mkdir()
    for source, word in ((tmp_path / "gone", "is not there"), (tmp_path / "bad.zip", "zip"), (tmp_path / "empty", "holds no SIRSTdevkit")):
        message = one_line(ds.fetch, tmp_path / "new", source, progress=False, wanted=wanted)
        assert word in message and str(source) in message
    (tmp_path / "file").write_text("x")
    assert "cannot be" in one_line(ds.fetch, tmp_path / "file/sub", kit, progress=False, wanted=wanted)
    assert not ds.hashes(tmp_path / "new")


def test_fetch_from_git(kit, tmp_path, monkeypatch):
    work = tmp_path / "work"; shutil.copytree(kit, work / ds.INSIDE)
    git = lambda *words, where=work: subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=where, check=True, capture_output=True, text=True).stdout.strip()
    git("init", "-q"); git("add", "."); git("commit", "-qm", "x")
    bare = tmp_path / "bare.git"; git("clone", "-q", "--bare", str(work), str(bare), where=tmp_path)
    assert ds.COMMIT[:12] in one_line(ds.fetch, tmp_path / "new", bare, progress=False, wanted=ds.hashes(kit))
    monkeypatch.setattr(ds, "COMMIT", git("rev-parse", "HEAD"))
    shutil.rmtree(work / ds.INSIDE)
    for i, source in enumerate((bare, work)):
        wanted = ds.hashes(kit) | {"PNGImages/more.png": (3, "0" * 64)}
        report = ds.fetch(tmp_path / f"new{i}", source, progress=False, wanted=wanted)
        assert report.wrong == ("PNGImages/more.png",) and ds.hashes(tmp_path / f"new{i}") == ds.hashes(kit)


class Server(http.server.BaseHTTPRequestHandler):
    """Pages by path; `cut` bytes of the first answer are sent when it is set; Range is honoured when `ranges` is."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        state = self.server.state
        start = int(self.headers["Range"][6:-1]) if self.headers.get("Range") and state["ranges"] else 0
        state["asked"].append((self.path, start))
        body = state["pages"].get(self.path)
        if body is None: return self.send_error(404)
        if start >= len(body): return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start)); self.end_headers()
        cut = state.pop("cut", None)
        self.wfile.write(body[start:][:cut]); self.close_connection = True

    def log_message(self, *words): pass


@pytest.fixture
def server(kit, tmp_path):
    """A loopback server laid out as GitHub; `.state` steers it."""
    pages = {f"/raw/{ds.COMMIT}/{ds.INSIDE}/{name}": (kit / name).read_bytes() for name in ds.hashes(kit)}
    pages[f"/archive/{ds.COMMIT}.zip"] = archive(tmp_path / "served.zip", kit).read_bytes()
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    s.state = dict(pages=pages, asked=[], ranges=True)
    s.address = f"http://127.0.0.1:{s.server_port}"
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


def test_few_files_come_one_by_one(kit, tmp_path, server):
    wanted = ds.hashes(kit)
    ds.fetch(tmp_path / "new", kit, progress=False, wanted={k: v for k, v in wanted.items() if k != "PNGImages/a.png"})
    report = ds.fetch(tmp_path / "new", server.address + "/", progress=False, wanted=wanted)
    assert report.fetched == 1 and [p for p, _ in server.state["asked"]] == [f"/raw/{ds.COMMIT}/{ds.INSIDE}/PNGImages/a.png"] and ds.hashes(tmp_path / "new") == wanted


def test_bytes_that_differ_are_not_kept(kit, tmp_path, server):
    page = f"/raw/{ds.COMMIT}/{ds.INSIDE}/PNGImages/a.png"
    server.state["pages"][page] = server.state["pages"][page][:-1] + b"?"
    report = ds.fetch(tmp_path / "new", server.address, progress=False, wanted=ds.hashes(kit))
    assert report.wrong == ("PNGImages/a.png",) and not (tmp_path / "new/PNGImages/a.png").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_of_the_archive_goes_on(kit, tmp_path, server, monkeypatch, ranges):
    monkeypatch.setattr(ds, "FEW", 2)
    server.state.update(ranges=ranges, cut=500)
    wanted, dest = ds.hashes(kit), tmp_path / "new"
    assert "run fetch again" in one_line(ds.fetch, dest, server.address, progress=False, wanted=wanted)
    assert (dest / ".archive.part").stat().st_size == 500
    report = ds.fetch(dest, server.address, progress=False, wanted=wanted)
    assert report.fetched == len(wanted) and ds.hashes(dest) == wanted and [s for _, s in server.state["asked"]] == ([0, 500] if ranges else [0, 0])
    assert not [p.name for p in dest.rglob(".*")]


def test_a_part_as_long_as_the_archive_starts_again(kit, tmp_path, server, monkeypatch):
    monkeypatch.setattr(ds, "FEW", 2)
    (tmp_path / "new").mkdir(); (tmp_path / "new/.archive.part").write_bytes(b"?" * len(server.state["pages"][f"/archive/{ds.COMMIT}.zip"]))
    assert ds.fetch(tmp_path / "new", server.address, progress=False, wanted=ds.hashes(kit)).wrong == ()


def test_a_spoilt_archive_is_thrown_away(kit, tmp_path, server, monkeypatch):
    monkeypatch.setattr(ds, "FEW", 2)
    good = server.state["pages"][f"/archive/{ds.COMMIT}.zip"]
    server.state["pages"][f"/archive/{ds.COMMIT}.zip"] = b"?" * 100
    assert "zip" in one_line(ds.fetch, tmp_path / "new", server.address, progress=False, wanted=ds.hashes(kit))
    server.state["pages"][f"/archive/{ds.COMMIT}.zip"] = good
    assert ds.fetch(tmp_path / "new", server.address, progress=False, wanted=ds.hashes(kit)).wrong == ()


def test_an_archive_without_end_is_stopped(kit, tmp_path, server, monkeypatch):
    monkeypatch.setattr(ds, "FEW", 2); monkeypatch.setattr(ds, "ARCHIVE_LIMIT", 1000)
    server.state["pages"][f"/archive/{ds.COMMIT}.zip"] = b"x" * 300_000
    assert "more than 1,000 bytes" in one_line(ds.fetch, tmp_path / "new", server.address, progress=False, wanted=ds.hashes(kit))


def test_no_network_is_one_line(kit, tmp_path, server):
    wanted = ds.hashes(kit)
    assert "404" in one_line(ds.fetch, tmp_path / "new", server.address + "/elsewhere", progress=False, wanted=wanted)
    server.shutdown(); server.server_close()
    message = one_line(ds.fetch, tmp_path / "new", server.address, progress=False, wanted=wanted)
    assert "127.0.0.1" in message and "go online" in message


def test_the_public_address_is_pinned():
    assert ds.ADDRESS == "https://github.com/GrokCV/DenseSIRST" and len(ds.COMMIT) == 40 and len(ds.manifest()) == 9226
    assert all(not Path(p).is_absolute() and ".." not in Path(p).parts and len(h) == 64 for p, (_, h) in ds.manifest().items())


# real files

def test_boxes_equal_mask_extents_in_real_images(data):
    for name in ds.names(data, "all")[::max(1, len(ds.names(data, "all")) // 72)]:
        sample = ds.load(data, name, "file")
        corrected = ds.mend(sample.boxes, sample.targets)
        assert set(map(tuple, corrected.tolist())) == set(map(tuple, box.from_mask(sample.targets).tolist())), name
        assert (sample.boxes == ds.origins()[name].boxes).all() and (sample.real == ds.origins()[name].real).all()
        assert bool((sample.boxes != corrected).any()) == bool(ds.images()[name]["box_shifted"]), name


def test_pasted_targets_stand_in_sky(data):
    for name in ds.names(data, "test_v2")[:24]:
        sample = ds.load(data, name)
        assert ds.measure(sample)["in_sky"][~sample.real].all(), name


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


def test_the_manifest_knows_the_real_files(data):
    some = [n for n in ds.manifest() if Path(n).stem.split("_pixels0")[0] in ("Misc_21", "Misc_53", "Misc_67", "TH_244")]
    assert len(some) == 36
    for name in some:
        content = (data / name).read_bytes()
        assert ds.manifest()[name] == (len(content), hashlib.sha256(content).hexdigest())
