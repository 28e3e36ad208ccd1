"""The page in a real browser: everything loads and nothing overflows. Speaks the W3C WebDriver protocol to chromedriver
over plain HTTP, so that it needs a browser and nothing else."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from desk.make_run import PROMPTS, failed_run, float_run, make_run, make_sweep

from runner.desk.report import write
from runner.desk.report.command import write_sweep

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH"),
]

# Opens what is folded, starts what waits for a click, and says what is not there yet or failed.
PENDING = """
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
    const videos = [...document.querySelectorAll("video")], images = [...document.querySelectorAll("img")];
    videos.filter((v) => v.preload === "none").forEach((v) => { v.preload = "auto"; v.load(); });
    images.forEach((image) => { image.loading = "eager"; });
    return {
        videos: videos.length,
        images: images.length,
        broken: [...videos.filter((v) => v.error), ...images.filter((i) => i.complete && !i.naturalWidth)]
            .map((e) => e.src),
        pending: [...videos.filter((v) => v.readyState < 2 || !v.videoWidth), ...images.filter((i) => !i.complete)]
            .map((e) => e.src),
    };
"""
OVERFLOWING = """
    const width = document.documentElement.clientWidth;
    const names = [...document.querySelectorAll("body *")]
        .filter((e) => !e.closest(".scroll") || e.classList.contains("scroll"))
        .filter((e) => e.getBoundingClientRect().right > width + 0.5 || e.getBoundingClientRect().left < -0.5)
        .map((e) => e.tagName + "." + e.getAttribute("class") + " " + e.textContent.trim().slice(0, 40));
    return {scrolls: document.documentElement.scrollWidth - width, names};
"""


class Browser:
    """One window of headless Chromium."""

    def __init__(self, url: str, profile: Path) -> None:
        self.url = url
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, page: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        return self._call("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def complaints(self) -> list[str]:
        entries = self._call("POST", f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def picture(self, file: Path) -> None:
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._call("DELETE", self.session)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    log = folder / "chromedriver.log"
    assert CHROMEDRIVER
    with log.open("w") as output, subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=output, stderr=output) as driver:
        try:
            window = Browser(f"http://127.0.0.1:{port(log)}", folder / "profile")
            yield window
            window.close()
        finally:
            driver.terminate()


def port(log: Path) -> int:
    for _ in range(200):
        if match := re.search(r"started successfully on port (\d+)", log.read_text()):
            return int(match[1])
        time.sleep(0.1)
    raise RuntimeError(f"chromedriver did not start: {log.read_text()}")


def many_clips(folder: Path) -> Path:
    return make_run(folder, [f"{PROMPTS[i % 4]}, take {i}" for i in range(14)], frames=3)


@pytest.fixture(
    scope="module", params=[make_run, float_run, failed_run, many_clips, make_sweep], ids=lambda make: make.__name__
)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = request.param
    folder = make(tmp_path_factory.mktemp("pages") / "run & name #1")
    return write_sweep(folder) if make is make_sweep else write(folder)


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_loads_and_nothing_overflows(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    for _ in range(900):  # a busy machine decodes videos slowly
        seen = browser.run(PENDING)
        if not seen["pending"] or seen["broken"]:
            break
        time.sleep(0.1)
    assert seen["broken"] == [] and seen["pending"] == []
    assert seen["videos"] == len(re.findall(r"<video ", page.read_text())) > 0
    assert browser.run(OVERFLOWING) == {"scrolls": 0, "names": []}
    assert browser.complaints() == []


def test_pairs_play_together_and_stop_together(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(make_run(tmp_path / "run")), 1280)
    paused = "return [...document.querySelectorAll('video')].map((v) => v.paused);"
    times = """
        return [...document.querySelectorAll("[data-pair]")]
            .map((pair) => [...pair.querySelectorAll("video")].map((v) => v.currentTime));
    """
    time.sleep(1)
    assert not any(browser.run(paused))
    browser.run("document.getElementById('play').click();")
    time.sleep(0.5)
    assert all(browser.run(paused))
    assert all(abs(first - second) <= 0.15 for first, second in browser.run(times))
