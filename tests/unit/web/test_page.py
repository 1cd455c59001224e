"""The page of a lab: what it is made of, and what it does in a browser, against a lab of the tests' own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("fastapi", reason="the extra `web` is not installed")

from unit.web.pagerig import MARKUP, TOKEN, PageLab, served
from unit.web.test_app import FakeLab, call
from virtfn.web.page import PATHS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = Path(__file__).parents[3] / "src" / "virtfn" / "web" / "page"


def test_the_page_needs_no_token_and_runs_nothing_of_others() -> None:
    lab = FakeLab()
    for path in PATHS:
        response = call(lab, "GET", path, headers={})
        assert response.status_code == 200
        if path.endswith(".json"):
            assert response.json()["mac-spoof"] == "its source address is not the sender's"
            continue
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
    assert not lab.asked


def test_all_files_of_the_page_are_served_and_no_other() -> None:
    assert {path.rpartition("/")[2] or "index.html" for path in PATHS} - {"reasons.json"} == {
        path.name for path in PAGE.iterdir()
    }
    assert call(FakeLab(), "GET", "/page/../app.py", headers={}).status_code in (401, 404)


def test_the_page_has_no_inline_scripts_or_styles_and_loads_nothing_from_elsewhere() -> None:
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)", html)
    assert not re.search(r"<style|\sstyle=|\son\w+=", html)
    for path in PAGE.glob("*"):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[\w.-]+\.\w+/|@import", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path.name


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 64 * 1024


# In a browser.

Opened = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="not run: Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("not run: Chromium is not installed")
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"not run: Chromium does not start here: {str(error)[-200:]}")
        yield browser
        browser.close()


@pytest.fixture
def lab() -> PageLab:
    return PageLab()


@pytest.fixture
def address(lab: PageLab) -> Iterator[str]:
    with served(lab) as where:
        yield where


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    """Opens the page; at the end, nothing may have gone wrong in it."""
    contexts, wrong = [], []

    def go(fragment: str = f"#token={TOKEN}", *, width: int = 1280, **more: object) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **more)  # type: ignore[arg-type]
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.goto(f"{address}/{fragment}")
        if fragment:
            page.wait_for_selector("#main:not([hidden])")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not wrong


@pytest.mark.slow
def test_it_shows_what_the_lab_says(opened: Opened, lab: PageLab) -> None:
    page = opened()
    assert page.title() == "page – virtfn"
    assert TOKEN not in page.url
    row = page.locator("tr", has=page.get_by_role("button", name="vf0 of pf0"))
    assert "web" in row.inner_text()
    row.locator(".sent", has_text=re.compile(r"^1\d\d k$")).wait_for()
    assert page.get_by_text("its source address is not the sender's").is_visible()
    assert page.get_by_text("0xdead000").count() == 2  # a fault, and an event
    assert page.locator("#events li").count() == len(lab.events)
    lab.events.append(("WORK_DONE", {"finished": True}))
    page.wait_for_selector("#events li:has-text('WORK_DONE')")
    assert page.locator("polyline").first.get_attribute("points")


@pytest.mark.slow
def test_names_are_text_whatever_they_are(opened: Opened) -> None:
    page = opened()
    assert page.get_by_text(MARKUP, exact=True).first.is_visible()
    page.get_by_role("button", name="vf2 of pf0").click()
    assert MARKUP in page.get_by_role("dialog").inner_text()
    assert page.locator("img").count() == 0


@pytest.mark.slow
def test_without_a_token_it_asks_for_one(opened: Opened, lab: PageLab) -> None:
    page = opened("")
    page.wait_for_selector("#token-form:not([hidden])")
    assert not lab.asked
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#token-wrong:has-text('not the lab')")
    assert not lab.asked
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#main:not([hidden])")
    assert lab.asked[0][0] == "session.look"


@pytest.mark.slow
def test_it_says_when_the_lab_is_gone_and_goes_on_when_it_is_back(opened: Opened, lab: PageLab) -> None:
    page = opened()
    lab.gone = True
    page.wait_for_selector("#connection:has-text('gone')")
    assert page.locator("tr button").first.is_visible()  # the last it told
    lab.began += 50  # another lab of that name
    lab.events = [("STATE_CHANGED", {"before": "new", "state": "starting"})]
    lab.gone = False
    page.wait_for_selector("#connection:has-text('Live')")
    page.wait_for_selector("#events li:only-child")


@pytest.mark.slow
def test_a_narrow_window_scrolls_in_one_direction_alone(opened: Opened) -> None:
    page = opened(width=400)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.get_by_role("button", name="vf2 of pf0").click()
    assert page.get_by_role("dialog").evaluate("d => d.scrollWidth <= d.clientWidth")


CONTRAST = """() => {
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent|srgb/.test(c)) return numbers(c);
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility()) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))].sort((p, q) => q - p);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${e.tagName}.${e.className}: ${e.textContent}`);
  }
  return poor;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened: Opened, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(16, 20, 24)"}[scheme]
    assert page.evaluate(CONTRAST) == []
    page.get_by_role("button", name="vf1 of pf0").click()
    assert page.get_by_role("dialog").is_visible()
    assert page.evaluate(CONTRAST) == []


# What is done to a VF.


@pytest.mark.slow
def test_a_policy_is_changed_by_the_keyboard_alone(opened: Opened, lab: PageLab) -> None:
    page = opened()
    button = page.get_by_role("button", name="vf1 of pf0")
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="pf0 vf1")
    assert dialog.is_visible()
    dialog.get_by_label("Port VLAN").fill("20")
    dialog.get_by_label("Trusted").press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    dialog.get_by_text("Done: it is in force.").wait_for()
    (params,) = [params for method, params in lab.asked if method == "link.set"]
    assert params == {"pf": "pf0", "settings": [{"vf": 1, "vlan": 20, "qos": 3, "trust": True}]}
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("b => b === document.activeElement")
    page.wait_for_selector("tr:has-text('VLAN 20, priority 3'):has-text('trusted')")


@pytest.mark.slow
def test_a_refusal_is_said_and_nothing_is_changed(opened: Opened, lab: PageLab) -> None:
    page = opened()
    page.get_by_role("button", name="vf0 of pf0").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("May send").fill("5000")
    dialog.get_by_role("button", name="Apply").click()
    said = dialog.get_by_role("status")
    said.get_by_text("Refused").wait_for()
    assert MARKUP in said.inner_text()
    assert "(EINVAL)" in said.inner_text()
    assert lab.links[0]["rate"]["max_tx"] == 500


@pytest.mark.slow
def test_what_a_form_cannot_mean_is_not_asked(opened: Opened, lab: PageLab) -> None:
    page = opened()
    page.get_by_role("button", name="vf0 of pf0").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Port VLAN").fill("4095")
    dialog.get_by_role("button", name="Apply").click()
    assert dialog.get_by_label("Port VLAN").evaluate("field => !field.validity.valid")
    dialog.get_by_label("Port VLAN").fill("0")
    dialog.get_by_role("button", name="Apply").click()
    dialog.get_by_text("Nothing is changed.").wait_for()
    assert "link.set" not in [method for method, _ in lab.asked]


@pytest.mark.slow
def test_a_vf_is_stopped_and_released(opened: Opened, lab: PageLab) -> None:
    page = opened()
    page.get_by_role("button", name="vf2 of pf0").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Why").fill("it floods")
    dialog.get_by_role("button", name="Quarantine").click()
    dialog.get_by_text("Stopped: it floods").wait_for()
    assert page.locator("tr.stopped .chip", has_text="quarantined").count() == 1
    dialog.get_by_role("button", name="Release").click()
    dialog.get_by_text("Released").wait_for()
    asked = [each for each in lab.asked if each[0].startswith("vf.") and each[0] != "vf.list"]
    assert asked == [
        ("vf.quarantine", {"pf": "pf0", "vf": 2, "why": "it floods"}),
        ("vf.release", {"pf": "pf0", "vf": 2}),
    ]


@pytest.mark.slow
def test_a_page_that_nobody_sees_asks_nothing(opened: Opened, lab: PageLab) -> None:
    page = opened()
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {get: () => true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.wait_for_timeout(1500)
    before = len(lab.asked)
    page.wait_for_timeout(1500)
    assert len(lab.asked) == before
