"""The gallery in headless Chromium: search, images, heat maps, keyboard, phone width, dark mode, no error.

Debian's packages chromium and chromium-driver; without them these tests are skipped.
"""

import shutil
from pathlib import Path

import pytest
from PIL import Image


selenium = pytest.importorskip("selenium", reason="needs the package selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from run_scripts.visualization import screenshots  # noqa: E402
from run_scripts.visualization.arguments import ScreenshotArguments  # noqa: E402
from run_scripts.visualization.collection import visualize  # noqa: E402
from tests.test_visualization import HOSTILE, build_gallery  # noqa: E402


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver"
)

PAGES = ["index.html", "codes.html", "images.html", "image/0.html", "image/1.html"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, tokenizer):
    arguments = build_gallery(tmp_path_factory.mktemp("browser"), tokenizer)
    visualize(arguments)
    return Path(arguments.output_dir)


@pytest.fixture(scope="module")
def browser():
    with screenshots.open_browser() as browser:
        yield browser


@pytest.fixture(autouse=True)
def nothing_goes_wrong(browser, gallery):
    """No error or warning on any page that a test opens, and no request beyond the folder."""
    screenshots.set_view(browser)
    yield
    assert browser.get_log("browser") == []
    requests = [
        entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]
    ]
    assert requests
    assert not any('"url":"http' in message or '"url":"//' in message for message in requests)


def code_pages(gallery) -> list[str]:
    pages = [path for path in sorted((gallery / "code").iterdir()) if "<canvas" in path.read_text(encoding="utf-8")]
    return [f"code/{path.name}" for path in pages[:2]]


def open_page(browser, gallery, page: str) -> None:
    path, mark, query = page.partition("?")
    browser.get((gallery / path).as_uri() + mark + query)
    WebDriverWait(browser, 20).until(lambda _: browser.execute_script("return document.readyState") == "complete")


def titles(browser) -> list[str]:
    return [title.get_attribute("textContent") for title in browser.find_elements(By.CSS_SELECTOR, "#results .title")]


def test_images_load_and_heat_maps_are_drawn(browser, gallery):
    for page in [*PAGES, *code_pages(gallery)]:
        open_page(browser, gallery, page)
        loaded = browser.execute_script(
            "return [...document.images].map(i => { i.loading = 'eager'; return i })"
            ".map(i => i.decode().then(() => i.naturalWidth, () => 0))"
            ".reduce((all, one) => all.then(list => one.then(width => [...list, width])), Promise.resolve([]))"
        )
        assert loaded and all(width > 0 for width in loaded), page
        is_drawn = browser.execute_script(
            "return [...document.querySelectorAll('canvas')].map(c => new Set(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data).size > 4)"
        )
        assert all(is_drawn) and bool(is_drawn) == ("/" in page), page


def test_a_heat_map_covers_what_the_model_saw(browser, gallery):
    open_page(browser, gallery, "image/1.html")  # 60 x 30 pixels, the central half seen
    image = browser.find_element(By.CSS_SELECTOR, ".maps img").rect
    canvas = browser.find_element(By.CSS_SELECTOR, ".maps canvas").rect
    assert image["width"] / image["height"] == pytest.approx(2, rel=0.02)
    assert canvas["width"] == pytest.approx(image["width"] / 2, rel=0.02)
    assert canvas["x"] == pytest.approx(image["x"] + image["width"] / 4, rel=0.02)


def test_search_of_images(browser, gallery):
    open_page(browser, gallery, "images.html")
    everything = titles(browser)
    assert set(HOSTILE) <= set(everything)
    browser.find_element(By.ID, "q").send_keys("CAT gra")
    assert titles(browser) == ["a cat on grass"] * 4
    assert browser.find_element(By.ID, "count").text == f"4 of {len(everything)} images"
    browser.find_element(By.ID, "q").clear()
    browser.find_element(By.ID, "q").send_keys("zebra")
    assert titles(browser) == []


def test_search_of_codes_sorts_and_filters(browser, gallery):
    open_page(browser, gallery, "codes.html")
    everything = titles(browser)
    browser.find_element(By.ID, "order").send_keys("number")
    numbers = [int(title.split()[0]) for title in titles(browser)]
    assert numbers == sorted(numbers) and len(numbers) == min(len(everything), 60)
    last = numbers[-1]
    browser.find_element(By.ID, "modality").send_keys("captions only")
    assert all("in 0% of images" in card.text for card in browser.find_elements(By.CSS_SELECTOR, "#results .card"))
    open_page(browser, gallery, f"codes.html?q={last}")
    assert any(int(title.split()[0]) == last for title in titles(browser))


def test_named_codes_come_first_and_show_the_caption_that_matches(browser, gallery):
    open_page(browser, gallery, "codes.html?q=cat")
    names = [title.split(maxsplit=1)[1].split(" · ") for title in titles(browser)]
    is_named = [any("cat" in word for word in words) for words in names]
    assert True in is_named and False in is_named and is_named == sorted(is_named, reverse=True)
    shown = [match.text for match in browser.find_elements(By.CSS_SELECTOR, "#results q")]
    assert shown and all("cat" in caption.lower() for caption in shown)
    cards = browser.find_elements(By.CSS_SELECTOR, "#results .card")
    assert any("of image pairs alike, p = 0." in card.text for card in cards)


def test_heat_maps_are_switched_by_keyboard_and_the_choice_is_remembered(browser, gallery):
    open_page(browser, gallery, "image/1.html")
    count = (
        "const c = document.querySelector('.maps canvas'), copy = document.createElement('canvas');"
        "const context = copy.getContext('2d', { willReadFrequently: true });"
        "[copy.width, copy.height] = [c.width, c.height]; context.drawImage(c, 0, 0);"
        "return [c.width, [...context.getImageData(0, 0, c.width, c.height).data].filter(Boolean).length]"
    )
    veil, mode = browser.execute_script(count), browser.find_element(By.CSS_SELECTOR, "input[value=veil]")
    assert veil[0] == 4 and veil[1] > 0
    mode.send_keys(Keys.ARROW_RIGHT)
    contour = browser.execute_script(count)
    assert contour[0] > 4 and contour[1] > 0
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(count)[1] == 0
    open_page(browser, gallery, "image/0.html")
    assert browser.find_element(By.CSS_SELECTOR, "input[value=plain]").is_selected()
    browser.find_element(By.CSS_SELECTOR, "input[value=veil]").click()
    assert browser.execute_script(count)[1] > 0


@pytest.mark.parametrize("width", [390, 1280])
def test_long_words_stay_in_their_cards(browser, gallery, width):
    screenshots.set_view(browser, width=width)
    open_page(browser, gallery, "images.html")
    browser.execute_script(
        "document.querySelectorAll('#results .note, #results .title').forEach("
        "(e) => { e.textContent = 'american_staffordshire_terrier'.repeat(9) })"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(
        "return [...document.querySelectorAll('.card')].every((card) => card.scrollWidth <= card.clientWidth)"
    )


def test_by_keyboard_from_the_overview_to_a_code_to_an_image(browser, gallery):
    open_page(browser, gallery, "index.html")

    def active():
        return browser.switch_to.active_element

    active().send_keys(Keys.TAB)
    assert active().text == "Skip to content" and active().rect["x"] >= 0
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    assert active().get_attribute("id") == "q"
    active().send_keys("cat", Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda _: "codes.html?q=cat" in browser.current_url)
    WebDriverWait(browser, 20).until(lambda _: titles(browser))
    browser.find_element(By.ID, "order").send_keys(Keys.TAB)
    assert active().get_attribute("class") == "card"
    outline = active().value_of_css_property("outline-style")
    assert outline != "none"
    active().send_keys(Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda _: "/code/" in browser.current_url)
    link = browser.find_element(By.CSS_SELECTOR, ".pairs a")
    link.send_keys(Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda _: "/image/" in browser.current_url)
    browser.find_element(By.CSS_SELECTOR, ".maps a.code").send_keys(Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda _: "/code/" in browser.current_url)


def test_every_page_fits_a_phone(browser, gallery):
    screenshots.set_view(browser, width=390)
    for page in [*PAGES, *code_pages(gallery)]:
        open_page(browser, gallery, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, page
        size = browser.execute_script("return parseFloat(getComputedStyle(document.querySelector('main p')).fontSize)")
        assert size >= 13, page


CONTRAST = """
const parse = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = (color) => parse(color).slice(0, 3).map((c) => c / 255)
  .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const background = (e) => { while (e) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c; e = e.parentElement; } return [255, 255, 255]; };
return [...document.querySelectorAll('main *, header a, footer *')]
  .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .filter((e) => !e.closest('svg, noscript, option'))
  .map((e) => { const [a, b] = [luminance(getComputedStyle(e).color), luminance(String(background(e)))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className, e.textContent.slice(0, 40)]; })
  .sort((x, y) => x[0] - y[0])[0];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark_mode(browser, gallery, scheme):
    screenshots.set_view(browser, scheme=scheme)
    for page in [*PAGES, *code_pages(gallery)]:
        open_page(browser, gallery, page)
        paper = browser.find_element(By.TAG_NAME, "html").value_of_css_property("background-color")
        red = int(paper.split("(")[1].split(",")[0])
        assert red > 200 if scheme == "light" else red < 60
        # WCAG 2.2, level AA, for text of normal size.
        assert browser.execute_script(CONTRAST)[0] >= 4.5, (page, browser.execute_script(CONTRAST))


def test_hostile_captions_run_nothing(browser, gallery):
    for number, caption in enumerate(HOSTILE):
        open_page(browser, gallery, f"image/{number}.html")
        assert browser.find_element(By.TAG_NAME, "h1").get_attribute("textContent") == caption
    open_page(browser, gallery, "images.html")
    assert (
        browser.execute_script("return document.querySelectorAll('#results script, #results img[onerror]').length")
        == 0
    )


def test_screenshots_show_whole_pages_in_every_view(browser, gallery, tmp_path):
    open_page(browser, gallery, "index.html")
    report = gallery / "index.html"  # any page will do
    screenshots.take_screenshots(
        ScreenshotArguments(gallery=str(gallery), report=str(report), output_dir=str(tmp_path))
    )
    sizes = {path.stem: Image.open(path).size for path in tmp_path.iterdir()}
    pages = ("index", "codes", "search", "images", "code", "image", "report")
    assert set(sizes) == {f"{view}_{page}" for view in ("light", "dark", "phone") for page in pages}
    assert {sizes[f"{view}_index"][0] for view in ("light", "dark")} == {1280}
    assert sizes["phone_index"][0] == 390 and sizes["phone_index"][1] > 844
