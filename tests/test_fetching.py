"""Fetching: a copy set against the manifest, its irregularities listed, every kind of source, downloads that break."""
import hashlib
import http.server
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from devkit import H, W, kit, one_line, xml
from PIL import Image

from bafe_nb import densesirst as ds
from bafe_nb import fetching


# verify

def test_verify_lists_what_is_odd(kit):
    Image.fromarray(np.zeros((H, W, 3), np.uint8) + np.uint8([1, 2, 3])).save(kit / "PNGImages/a.png")
    Image.fromarray(ds.read_mask(kit / "SIRST/PaletteMask/a.png").astype(np.uint8)).convert("P").save(kit / "SIRST/PaletteMask/a.png")
    (kit / "SIRST/BinaryMask").mkdir(); (kit / "SIRST/BinaryMask/a.xml").write_text(xml([(1, 1, 2, 2)]))
    Image.fromarray(np.zeros((H, W), np.uint8)).save(kit / "SIRST/BinaryMask/b_pixels0.png")
    (kit / "SIRST/Point_label").mkdir(); (kit / "SIRST/Point_label/a_pixels0.txt").write_text("3 4\n10 3"); (kit / "SIRST/Point_label/b_pixels0.txt").write_text("3 4\n10 3\n")
    report = fetching.verify(kit, progress=False)
    f = report.findings
    assert report.usable and not report.complete and report.counts == dict(images=2, targets=3, real=3, trainval_v2=1, train_v2=1, val_v2=1, test_v2=1)
    assert f["colour"] == f["unequal"] == f["stale"] == ["a"] and f["palette"] == ["a"] and f["shifted"] == ["b"] and f["masks"] == ["b"] and f["points"] == ["b"]
    assert f["overlap"] == ["a"] and "val_v2.txt" not in f["newline"] and "test_v2.txt" in f["newline"] and "PNGImages/a.png" in f["extra"] and len(f["missing"]) + len(f["wrong"]) == 9226
    assert "not the full DenseSIRST" in str(report) and "1,024" in str(report)


def test_verify_goes_on_after_a_broken_file(kit):
    (kit / "PNGImages/a.png").write_bytes(b"nothing")
    (kit / "Splits/train_v2.txt").write_text("a\nCasper")
    report = fetching.verify(kit, progress=False)
    assert not report.usable and report.counts["targets"] == 1 and len(report.findings["unreadable"]) == 2
    assert "files are broken" in str(report) and "Casper" in str(report)


# fetch

def archive(path, kit, prefix="DenseSIRST-x/data/SIRSTdevkit", skip=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name in fetching.hashes(kit):
            if name not in skip: z.write(kit / name, f"{prefix}/{name}" if prefix else name)
    return path


def test_fetch_from_a_folder_then_only_what_is_missing_or_wrong(kit, tmp_path):
    wanted, dest = fetching.hashes(kit), tmp_path / "new/SIRSTdevkit"
    first = fetching.fetch(dest, kit, progress=False, wanted=wanted)
    assert (first.present, first.fetched, first.wrong) == (0, len(wanted), ()) and fetching.hashes(dest) == wanted
    (dest / "PNGImages/a.png").write_bytes(b"bad"); (dest / "PNGImages/b.png").unlink()
    untouched = (dest / "Splits/test_v2.txt").stat().st_mtime_ns
    again = fetching.fetch(dest, kit.parent, progress=False, wanted=wanted)
    assert (again.present, again.fetched) == (len(wanted) - 2, 2) and (dest / "Splits/test_v2.txt").stat().st_mtime_ns == untouched and fetching.hashes(dest) == wanted
    assert fetching.fetch(dest, tmp_path / "nowhere", progress=False, wanted=wanted).fetched == 0


@pytest.mark.parametrize("prefix", ["", "SIRSTdevkit", "DenseSIRST-x/data/SIRSTdevkit"])
def test_fetch_from_a_zip(kit, tmp_path, prefix):
    wanted = fetching.hashes(kit)
    report = fetching.fetch(tmp_path / "new", archive(tmp_path / "x.zip", kit, prefix, skip=["PNGImages/b.png"]), progress=False, wanted=wanted)
    assert report.wrong == ("PNGImages/b.png",) and report.fetched == len(wanted) - 1 and "PNGImages/b.png" in str(report)


def test_a_hostile_zip_writes_nothing_of_its_own(kit, tmp_path):
    wanted = fetching.hashes(kit)
    with zipfile.ZipFile(archive(tmp_path / "x.zip", kit, skip=["PNGImages/a.png", "PNGImages/b.png"]), "a", zipfile.ZIP_DEFLATED) as z:
        z.writestr("DenseSIRST-x/data/SIRSTdevkit/../../../../climbed.txt", "x"); z.writestr("/absolute.txt", "x")
        link = zipfile.ZipInfo("DenseSIRST-x/data/SIRSTdevkit/PNGImages/a.png"); link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd"); z.writestr("DenseSIRST-x/data/SIRSTdevkit/PNGImages/b.png", b"\0" * 50_000_000)
    report = fetching.fetch(tmp_path / "new", tmp_path / "x.zip", progress=False, wanted=wanted)
    assert set(report.wrong) == {"PNGImages/a.png", "PNGImages/b.png"}
    assert set(fetching.hashes(tmp_path / "new")) == set(wanted) - set(report.wrong) and not list(tmp_path.rglob("climbed.txt"))


def test_sources_that_cannot_be_used(kit, tmp_path):
    wanted = fetching.hashes(kit)
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 not really"); (tmp_path / "empty").mkdir()
    for source, word in ((tmp_path / "gone", "is not there"), (tmp_path / "bad.zip", "zip"), (tmp_path / "empty", "holds no SIRSTdevkit")):
        message = one_line(fetching.fetch, tmp_path / "new", source, progress=False, wanted=wanted)
        assert word in message and str(source) in message
    (tmp_path / "file").write_text("x")
    assert "cannot be" in one_line(fetching.fetch, tmp_path / "file/sub", kit, progress=False, wanted=wanted)
    assert not fetching.hashes(tmp_path / "new")


def test_fetch_from_git(kit, tmp_path, monkeypatch):
    work = tmp_path / "work"; shutil.copytree(kit, work / fetching.INSIDE)
    git = lambda *words, where=work: subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=where, check=True, capture_output=True, text=True).stdout.strip()
    git("init", "-q"); git("add", "."); git("commit", "-qm", "x")
    bare = tmp_path / "bare.git"; git("clone", "-q", "--bare", str(work), str(bare), where=tmp_path)
    assert fetching.COMMIT[:12] in one_line(fetching.fetch, tmp_path / "new", bare, progress=False, wanted=fetching.hashes(kit))
    monkeypatch.setattr(fetching, "COMMIT", git("rev-parse", "HEAD"))
    shutil.rmtree(work / fetching.INSIDE)
    for i, source in enumerate((bare, work)):
        wanted = fetching.hashes(kit) | {"PNGImages/more.png": (3, "0" * 64)}
        report = fetching.fetch(tmp_path / f"new{i}", source, progress=False, wanted=wanted)
        assert report.wrong == ("PNGImages/more.png",) and fetching.hashes(tmp_path / f"new{i}") == fetching.hashes(kit)


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
    pages = {f"/raw/{fetching.COMMIT}/{fetching.INSIDE}/{name}": (kit / name).read_bytes() for name in fetching.hashes(kit)}
    pages[f"/archive/{fetching.COMMIT}.zip"] = archive(tmp_path / "served.zip", kit).read_bytes()
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    s.state = dict(pages=pages, asked=[], ranges=True)
    s.address = f"http://127.0.0.1:{s.server_port}"
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown(); s.server_close()


def test_few_files_come_one_by_one(kit, tmp_path, server):
    wanted = fetching.hashes(kit)
    fetching.fetch(tmp_path / "new", kit, progress=False, wanted={k: v for k, v in wanted.items() if k != "PNGImages/a.png"})
    report = fetching.fetch(tmp_path / "new", server.address + "/", progress=False, wanted=wanted)
    assert report.fetched == 1 and [p for p, _ in server.state["asked"]] == [f"/raw/{fetching.COMMIT}/{fetching.INSIDE}/PNGImages/a.png"] and fetching.hashes(tmp_path / "new") == wanted


def test_bytes_that_differ_are_not_kept(kit, tmp_path, server):
    page = f"/raw/{fetching.COMMIT}/{fetching.INSIDE}/PNGImages/a.png"
    server.state["pages"][page] = server.state["pages"][page][:-1] + b"?"
    report = fetching.fetch(tmp_path / "new", server.address, progress=False, wanted=fetching.hashes(kit))
    assert report.wrong == ("PNGImages/a.png",) and not (tmp_path / "new/PNGImages/a.png").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_of_the_archive_goes_on(kit, tmp_path, server, monkeypatch, ranges):
    monkeypatch.setattr(fetching, "FEW", 2)
    server.state.update(ranges=ranges, cut=500)
    wanted, dest = fetching.hashes(kit), tmp_path / "new"
    assert "run fetch again" in one_line(fetching.fetch, dest, server.address, progress=False, wanted=wanted)
    assert (dest / ".archive.part").stat().st_size == 500
    report = fetching.fetch(dest, server.address, progress=False, wanted=wanted)
    assert report.fetched == len(wanted) and fetching.hashes(dest) == wanted and [s for _, s in server.state["asked"]] == ([0, 500] if ranges else [0, 0])
    assert not [p.name for p in dest.rglob(".*")]


def test_a_part_as_long_as_the_archive_starts_again(kit, tmp_path, server, monkeypatch):
    monkeypatch.setattr(fetching, "FEW", 2)
    (tmp_path / "new").mkdir(); (tmp_path / "new/.archive.part").write_bytes(b"?" * len(server.state["pages"][f"/archive/{fetching.COMMIT}.zip"]))
    assert fetching.fetch(tmp_path / "new", server.address, progress=False, wanted=fetching.hashes(kit)).wrong == ()


def test_a_spoilt_archive_is_thrown_away(kit, tmp_path, server, monkeypatch):
    monkeypatch.setattr(fetching, "FEW", 2)
    good = server.state["pages"][f"/archive/{fetching.COMMIT}.zip"]
    server.state["pages"][f"/archive/{fetching.COMMIT}.zip"] = b"?" * 100
    assert "zip" in one_line(fetching.fetch, tmp_path / "new", server.address, progress=False, wanted=fetching.hashes(kit))
    server.state["pages"][f"/archive/{fetching.COMMIT}.zip"] = good
    assert fetching.fetch(tmp_path / "new", server.address, progress=False, wanted=fetching.hashes(kit)).wrong == ()


def test_an_archive_without_end_is_stopped(kit, tmp_path, server, monkeypatch):
    monkeypatch.setattr(fetching, "FEW", 2); monkeypatch.setattr(fetching, "ARCHIVE_LIMIT", 1000)
    server.state["pages"][f"/archive/{fetching.COMMIT}.zip"] = b"x" * 300_000
    assert "more than 1,000 bytes" in one_line(fetching.fetch, tmp_path / "new", server.address, progress=False, wanted=fetching.hashes(kit))


def test_no_network_is_one_line(kit, tmp_path, server):
    wanted = fetching.hashes(kit)
    assert "404" in one_line(fetching.fetch, tmp_path / "new", server.address + "/elsewhere", progress=False, wanted=wanted)
    server.shutdown(); server.server_close()
    message = one_line(fetching.fetch, tmp_path / "new", server.address, progress=False, wanted=wanted)
    assert "127.0.0.1" in message and "go online" in message


def test_the_public_address_is_pinned():
    assert fetching.ADDRESS == "https://github.com/GrokCV/DenseSIRST" and len(fetching.COMMIT) == 40 and len(fetching.manifest()) == 9226
    assert all(not Path(p).is_absolute() and ".." not in Path(p).parts and len(h) == 64 for p, (_, h) in fetching.manifest().items())


# real files

def test_the_manifest_knows_the_real_files(data):
    some = [n for n in fetching.manifest() if Path(n).stem.split("_pixels0")[0] in ("Misc_21", "Misc_53", "Misc_67", "TH_244")]
    assert len(some) == 36
    for name in some:
        content = (data / name).read_bytes()
        assert fetching.manifest()[name] == (len(content), hashlib.sha256(content).hexdigest())
