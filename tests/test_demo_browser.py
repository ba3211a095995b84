"""The demos as a reader meets them: Voila on loopback in headless Chromium, every control moved, the picture changed each time."""
import importlib.util
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request

import cv2
import pytest

from bafe_nb import demo, scenes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("playwright", "voila", "ipywidgets") if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium (apt-get install chromium)"])
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"the browser test needs {', '.join(MISSING)}")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
READ = """async image => { const bytes = await (await fetch(image.src)).arrayBuffer();
                         return Array.from(new Uint8Array(await crypto.subtle.digest("SHA-1", bytes))).join(","); }"""


@pytest.fixture(scope="module")
def address():
    """Where `bafe demo`, run as a command, says it is; afterwards Ctrl-C must end it, and its server, without a trace."""
    port = demo.free_port(0)
    words = [sys.executable, "-c", "import sys; from bafe_nb import app; sys.exit(app.main())", "demo", "--port", str(port)]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)        # a job in the background of a shell is deaf to Ctrl-C, and so are its children
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard)
    try:
        assert process.stdout.readline() == f"the demos are at http://127.0.0.1:{port} - Ctrl-C ends them\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and rest == "ended\n" and demo.free_port(port) == port


@pytest.fixture(scope="module")
def page(address, tmp_path_factory):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, headless=True, args=FLAGS,
                                                          viewport=dict(width=1100, height=1200), accept_downloads=True)
        page = context.new_page()
        page.foreign, page.mistakes = [], []
        def elsewhere(request): return not request.url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
        page.on("requestfinished", lambda request: page.foreign.append(request.url) if elsewhere(request) else None)
        page.on("requestfailed", lambda request: page.foreign.append(f"{request.url}: {request.failure}") if elsewhere(request) and request.failure != "csp" else None)
        page.on("pageerror", lambda error: page.mistakes.append(str(error)))
        page.goto(address)
        page.wait_for_selector("img.widget-image", timeout=240_000)
        yield page
        context.close()


class Tab:
    """One tab of the app: its controls by name, and the digest of its picture."""

    def __init__(self, page, name):
        self.page = page
        page.get_by_role("tab", name=name, exact=True).click()
        self.image = page.locator("img.widget-image:visible")
        self.image.wait_for()

    def picture(self): return self.image.evaluate(READ)

    def control(self, name): return self.page.locator(".jupyter-widgets.widget-inline-hbox:visible, .widget-checkbox:visible", has=self.page.get_by_text(name, exact=True))

    def changes(self, name, act):
        """Do `act` with the control `name`; the picture must become another one."""
        before = self.picture()
        act(self.control(name))
        for _ in range(200):
            if self.picture() != before: return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{name} was moved and the picture stayed as it was")

    def slide(self, name, presses=3, key="ArrowRight"):
        def act(control):
            control.locator(".noUi-handle").focus()
            for _ in range(presses): self.page.keyboard.press(key)
        self.changes(name, act)
        self.settle()

    def settle(self):
        """Wait until the picture stands still, so that a late redraw is not taken for the next one."""
        seen, still = self.picture(), 0
        for _ in range(100):
            self.page.wait_for_timeout(60)
            now = self.picture(); still = still + 1 if now == seen else 0; seen = now
            if still == 4: return
        raise AssertionError("the picture never stands still")

    def tick(self, name): self.changes(name, lambda control: control.locator("input").click()); self.settle()

    def choose(self, name, option): self.changes(name, lambda control: control.locator("select").select_option(option)); self.settle()


def dataset_browser(page):
    tab = Tab(page, "Dataset")
    options = tab.control("split").locator("option").all_inner_texts()
    assert options == list(demo.datasets())
    if len(options) > 1: tab.choose("split", "scenes")
    tab.slide("image", 4)
    for name in ("boxes", "target mask", "sky"): tab.tick(name)
    tab.slide("zoom", 4)
    tab.slide("x %", 10); tab.slide("y %", 10, "ArrowLeft")


def bagcp_playground(page):
    tab = Tab(page, "BAG-CP")
    if len(demo.datasets()) > 1: tab.choose("split", "scenes")
    for name in ("image", "number", "sigma", "seed"): tab.slide(name)
    tab.slide("lambda", 4, "ArrowLeft"); tab.slide("window", 8)
    tab.tick("close-up"); tab.tick("only sky")


def exchange_viewer(page):
    tab = Tab(page, "Exchange")
    if tab.control("maps").locator("select").evaluate("s => s.selectedOptions[0].text") != "filters": tab.choose("maps", "filters")
    for kind in ("static", "dynamic", "none", "learnable"): tab.choose("exchange", kind)
    for name in ("channel", "image"): tab.slide(name, 2)
    tab.slide("p", 6)
    if len(demo.datasets()) > 1: tab.choose("split", "scenes")


def detector(page, folder):
    tab = Tab(page, "Detector")
    if len(demo.datasets()) > 1: tab.choose("split", "scenes")
    tab.slide("image", 2)
    rows = page.locator("table.bafe-boxes:visible tr")
    tab.slide("threshold", 8, "ArrowLeft")
    low = rows.count()
    with page.expect_download() as caught: page.locator("a.bafe-download:visible").click()
    entries = json.loads(caught.value.path().read_text())
    assert caught.value.suggested_filename.endswith("-detections.json") and entries and {"image_id", "category_id", "bbox", "score"} == set(entries[0])
    assert low == 1 + min(len(entries), 8)
    tab.slide("sky", 7)
    tab.slide("threshold", 17)
    assert rows.count() <= low

    def upload(path):
        with page.expect_file_chooser() as chooser: page.locator("button.widget-upload:visible").click()
        chooser.value.set_files(path)
    cv2.imwrite(str(folder / "mine.png"), scenes.scene(77).image)
    (folder / "notes.png").write_text("no picture at all")
    tab.changes("own image", lambda _: upload(folder / "mine.png")); tab.settle()
    assert "mine-detections.json" in page.locator("a.bafe-download:visible").inner_text()
    picture = tab.picture()
    upload(folder / "notes.png")
    page.get_by_text("notes.png cannot be read").wait_for()
    assert tab.picture() == picture                       # the last good picture stays
    tab.choose("show", "sample")


@needs_browser
def test_every_control_changes_its_picture(page, tmp_path):
    """One test, so that server and browser start once; afterwards no request has left this machine and no script has failed."""
    dataset_browser(page)
    bagcp_playground(page)
    exchange_viewer(page)
    detector(page, tmp_path)
    assert page.foreign == [] and page.mistakes == []


@pytest.mark.skipif(importlib.util.find_spec("voila") is None, reason="the app needs voila (extra lab)")
def test_bafe_demo_as_a_command(address):
    """`bafe demo` holds its port on this machine only, and forbids its page every other address."""
    port = int(address.rsplit(":")[-1])
    with pytest.raises(demo.InputError, match="in use"): demo.free_port(port)
    with pytest.raises(OSError): socket.create_connection(("127.0.0.2", port), timeout=5).close()
    with urllib.request.urlopen(address, timeout=200) as answer: assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
