"""The report and the app (notebook 08) as a reader opens them: offline, on a phone and a desk."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pandas as pd
import pytest
from playwright.sync_api import expect, sync_playwright

from xraylib.paths import ROOT
from xraylib.report import notebooks

OPTIONS = (
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)
MEASURE = """() => ({
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  pictures: [...document.images].map(i => [i.getAttribute('alt'), i.naturalWidth, i.clientWidth]),
  smallest: Math.min(...[...document.querySelectorAll('p, td, th, a, li, figcaption, dd')]
    .filter(e => e.offsetParent).map(e => parseFloat(getComputedStyle(e).fontSize))),
  screens: document.documentElement.scrollHeight / window.innerHeight,
  cut: [...document.querySelectorAll('h1, h2, h3, p, td, th, a, li, img, span, summary')]
    .filter(e => e.offsetParent && !e.closest('.scroll, .jp-OutputArea-output, pre'))
    .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
    .map(e => (e.textContent || e.src).slice(0, 60)),
})"""
LOADED = """async () => {
  document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })
  await Promise.allSettled([...document.images].map(i => i.decode()))
}"""


@pytest.fixture(scope="module")
def browser():
    command = os.environ.get("XRAYLIB_BROWSER") or shutil.which("chromium")
    if not command:
        pytest.skip(
            "there is no chromium on this machine (XRAYLIB_BROWSER names another browser's command)"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(command), args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A page that keeps what it asks for and what it complains of."""
    page = browser.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on(
        "requestfailed", lambda request: page.complaints.append(f"{request.url} {request.failure}")
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "console",
        lambda said: said.type in ("error", "warning") and page.complaints.append(said.text),
    )
    yield page
    page.close()


def see(page, file, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(file.resolve().as_uri())
    page.evaluate(LOADED)
    return page.evaluate(MEASURE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    html = tmp_path_factory.mktemp("page") / "06_evaluation.html"
    notebooks.write_page(ROOT / "notebooks" / "06_evaluation.ipynb", html, "06_evaluation")
    return {"report": ROOT / "reports" / "kermany" / "index.html", "notebook": html}


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("which", ["report", "notebook"])
def test_a_page_opens_offline_and_is_readable(tab, pages, which, width):
    seen = see(tab, pages[which], width)
    assert tab.complaints == []
    assert [url for url in tab.asked if not url.startswith(("file:", "data:"))] == []
    assert len(seen["pictures"]) >= 5
    for alt, own_width, shown_width in seen["pictures"]:
        assert alt and alt != "figure", "a picture says nothing to those who cannot see it"
        assert own_width > 0 and shown_width <= width, alt
    assert seen["overflow"] <= 0
    assert seen["smallest"] >= 11
    if which == "report":
        assert seen["cut"] == []
        assert seen["screens"] <= {1400: 8, 400: 12}[width]


@pytest.mark.slow
def test_the_check_finds_what_is_wrong(tab, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='missing.png' alt=''><p style='width:900px;font-size:8px'>wide</p>"
        "<script>console.error('bad'); fetch('https://example.org/x').catch(() => {})</script>"
    )
    seen = see(tab, page, 400)
    assert (
        seen["overflow"] > 400
        and seen["cut"] == ["wide"]
        and seen["smallest"] == 8
        and seen["pictures"][0][:2] == ["", 0]
    )
    said = " ".join(tab.complaints)
    assert "bad" in said and "ERR_FILE_NOT_FOUND" in said
    assert "https://example.org/x" in tab.asked


@pytest.fixture(scope="module")
def app():
    """The address of notebook 08, served as `make app` serves it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xraylib.app", "--no-browser", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as server:
        for _ in range(300):
            time.sleep(0.2)
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An image, the same as DICOM, a file that is none, and one that is too large, in order."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("pneumonia.jpeg", "pneumonia.dcm"):
        shutil.copy(ROOT / "data" / "examples" / name, folder)
    (folder / "<b>bad.jpg").write_text("no picture")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(51_000_000)
    return [folder / name for name in ("pneumonia.jpeg", "<b>bad.jpg", "huge.png", "pneumonia.dcm")]


def open_app(tab, app, width):
    """Open the page of the app, and return its field for files."""
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(app, timeout=120_000)
    field = tab.get_by_label("images", exact=True)
    expect(field).to_be_attached(timeout=120_000)
    return field


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_app_answers_in_order_and_asks_no_other_host_for_anything(tab, app, given, width):
    field = open_app(tab, app, width)
    assert tab.title() == "Pneumonia on a chest X-ray?"
    assert tab.locator("h1").all_inner_texts() == ["Pneumonia on a chest X-ray?"]
    expect(tab.get_by_text("not a medical device")).to_be_visible()
    status = tab.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"

    field.set_input_files(given)
    expect(status).to_contain_text("4 of 4 answered. pneumonia.dcm: ", timeout=60_000)
    expect(tab.get_by_role("progressbar")).to_be_hidden()
    expect(tab.get_by_role("heading", level=2)).to_have_text([path.name for path in given])
    answers = tab.locator(".xr-answer")
    expect(answers.nth(1)).to_have_text("no answer")
    assert answers.nth(0).inner_text() == answers.nth(3).inner_text(), "one image twice"
    expect(tab.get_by_text("No JPEG, PNG, TIFF or DICOM image")).to_be_visible()
    expect(tab.get_by_text("51 MB. Fix: give files of at most 50 MB")).to_be_visible()

    seen = tab.evaluate(MEASURE)
    assert seen["overflow"] <= 0
    assert seen["smallest"] >= 11
    assert len(seen["pictures"]) == 2
    assert all(alt for alt, _, _ in seen["pictures"])
    assert {url for url in tab.asked if not url.startswith((app, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_an_answer_is_explained_by_keyboard_and_the_table_is_downloaded(tab, app):
    field = open_app(tab, app, 1400)
    tab.keyboard.press("Tab")
    expect(field).to_be_focused()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("status")).to_contain_text("4 of 4", timeout=60_000)
    answered = tab.locator("li", has_text="Probability of pneumonia:").first
    answered.locator("summary").focus()
    tab.keyboard.press("Enter")
    slider = answered.get_by_role("slider", name="Crop: make the box")
    expect(slider).to_be_visible(timeout=60_000)
    output = answered.locator("output")
    expect(output).to_contain_text("5% larger on each side (as answered)")
    frame = answered.locator(".xr-frame")
    before = frame.bounding_box()
    slider.focus()
    tab.keyboard.press("Home")
    expect(output).to_contain_text("10% smaller on each side: ")
    assert frame.bounding_box()["height"] < before["height"]
    expect(answered.get_by_role("table")).to_contain_text("darker by 40 grey levels")
    assert all(alt for alt, _, _ in tab.evaluate(MEASURE)["pictures"])

    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download the answers").click()
    rows = pd.read_csv(download.value.path())
    assert rows["path"].tolist() == tab.get_by_role("heading", level=2).all_inner_texts()
    tab.get_by_role("button", name="Clear").click()
    expect(tab.get_by_role("heading", level=2)).to_have_count(0)
    assert {url for url in tab.asked if not url.startswith((app, "data:", "blob:"))} == set()


@pytest.mark.slow
def test_the_app_listens_on_this_machine_only(app):
    port = urlsplit(app).port
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(
        ConnectionRefusedError
    ):  # where it listened everywhere, this would be answered
        socket.create_connection(("127.0.0.2", port))
