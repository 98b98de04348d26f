"""The pages as a reader opens them: by double click, on a phone and on a desk, without a network."""

import os
import shutil

import pytest
from browser import chromium

from xraylib.paths import ROOT
from xraylib.report import notebooks


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    command = os.environ.get("XRAYLIB_BROWSER") or shutil.which("chromium")
    if not command:
        pytest.skip("there is no chromium on this machine (XRAYLIB_BROWSER names another browser's command)")
    with chromium(command, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    html = tmp_path_factory.mktemp("page") / "06_evaluation.html"
    notebooks.write_page(ROOT / "notebooks" / "06_evaluation.ipynb", html, "06_evaluation")
    return {"report": ROOT / "reports" / "kermany" / "index.html", "notebook": html}


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("which", ["report", "notebook"])
def test_a_page_opens_offline_and_is_readable(tab, pages, which, width):
    seen = tab.open(pages[which], width)
    assert tab.complaints() == []
    assert [url for url in tab.asked_for() if not url.startswith(("file:", "data:"))] == []
    assert len(seen["pictures"]) >= 10
    for alt, own_width, shown_width in seen["pictures"]:
        assert alt and alt != "figure", "a picture says nothing to those who cannot see it"
        assert own_width > 0 and shown_width <= width, alt
    assert seen["overflow"] <= 0
    assert seen["smallest"] >= 11


def test_the_check_finds_what_is_wrong(tab, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='missing.png' alt=''><p style='width:900px;font-size:8px'>wide</p>"
        "<script>console.error('bad'); fetch('https://example.org/x').catch(() => {})</script>"
    )
    seen = tab.open(page, 400)
    assert seen["overflow"] > 400 and seen["smallest"] == 8 and seen["pictures"][0][:2] == ["", 0]
    said = " ".join(tab.complaints())
    assert "bad" in said and "ERR_FILE_NOT_FOUND" in said
    assert "https://example.org/x" in tab.asked_for()
