# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Photographs of the gallery, the report and the app, by a browser without a window: light, dark, and on a phone."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from run_scripts.evaluation.embedding import load_model
from run_scripts.visualization.arguments import ScreenshotArguments


# By name: width and height of the window, and the colour scheme.
VIEWS = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light")}
SECONDS_TO_WAIT = 60


def find_chromium() -> tuple[str, str]:
    """The paths of Chromium and of its driver.

    Raises:
        ValueError: one of them is not installed.
    """
    paths = shutil.which("chromium"), shutil.which("chromedriver")
    if None in paths:
        raise ValueError("screenshots need chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    return paths


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window, which records requests and the console."""
    binary, driver = find_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def set_view(browser: webdriver.Chrome, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
    """The size of the window in pixels, and the colour scheme that pages are asked for."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def photograph(browser: webdriver.Chrome, path: Path) -> None:
    """The whole page as it is, below the window too, as PNG."""
    browser.execute_script("document.querySelectorAll('img').forEach((image) => { image.loading = 'eager'; })")
    WebDriverWait(browser, SECONDS_TO_WAIT).until(
        lambda _: browser.execute_script("return [...document.images].every((image) => image.complete)")
    )
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(shot["data"]))


def list_pages(gallery: Path) -> dict[str, str]:
    """By name, one page of each kind in a gallery: of its most coherent code, and of that code's strongest image."""
    rows = pyarrow.parquet.read_table(gallery / "codes.parquet").to_pylist()
    rows = [row for row in rows if (gallery / "code" / f"{row['code']}.html").exists() and row["top_image_rows"]]
    best = max(rows, key=lambda row: (row["image_coherence_share"] or 0, row["num_captions"]))
    word = best["name"].split(" · ")[0]
    return {
        "index": "index.html",
        "codes": "codes.html",
        "search": f"codes.html?q={word}",
        "images": "images.html",
        "code": f"code/{best['code']}.html",
        "image": f"image/{best['top_image_rows'][0]}.html",
    }


def take_screenshots(arguments: ScreenshotArguments) -> None:
    """Write `output_dir/VIEW_PAGE.png` for every view and every page that the arguments name.

    Raises:
        ValueError: Chromium is missing, or the model cannot be loaded.
    """
    output_dir, gallery = Path(arguments.output_dir), Path(arguments.gallery).resolve()
    pages = {name: f"{gallery.as_uri()}/{page}" for name, page in list_pages(gallery).items()}
    if arguments.report is not None:
        pages["report"] = Path(arguments.report).resolve().as_uri()
    with open_browser() as browser:
        for view, (width, height, scheme) in VIEWS.items():
            set_view(browser, width, height, scheme)
            for name, address in pages.items():
                browser.get(address)
                photograph(browser, output_dir / f"{view}_{name}.png")
        if arguments.model is not None:
            photograph_app(browser, arguments, output_dir)


def photograph_app(browser: webdriver.Chrome, arguments: ScreenshotArguments, output_dir: Path) -> None:
    """Serve the app, explain its example, and photograph it in every view."""
    from run_scripts.visualization.app import build_app

    app = build_app(*load_model(arguments.model, arguments.device))
    _, address, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        for view, (width, height, scheme) in VIEWS.items():
            set_view(browser, width, height, scheme)
            browser.get(address)
            upload = WebDriverWait(browser, SECONDS_TO_WAIT).until(
                lambda _: browser.find_element(By.CSS_SELECTOR, "input[type=file]")
            )
            upload.send_keys(str(Path(arguments.image).resolve()))
            WebDriverWait(browser, SECONDS_TO_WAIT).until(
                lambda _: browser.find_elements(By.CSS_SELECTOR, ".image-container img")
            )
            box = browser.find_element(By.CSS_SELECTOR, "textarea")
            box.clear()
            box.send_keys(arguments.labels)
            browser.find_element(By.CSS_SELECTOR, "button.primary").click()
            WebDriverWait(browser, SECONDS_TO_WAIT).until(
                lambda _: browser.find_elements(By.CSS_SELECTOR, ".heat-maps img")
            )
            photograph(browser, output_dir / f"{view}_app.png")
    finally:
        app.close()
