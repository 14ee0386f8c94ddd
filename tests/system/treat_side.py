"""A service's address in; what a person met who treated the miniature in its dashboard out.

Run in .venv-browser, as browser_side.py is.
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
PATIENCE = 900_000
"""Milliseconds: a trainer imports torch, and other programs may work beside it."""
WAYS = [(scheme, width) for width in (390, 1280) for scheme in ("light", "dark")]
HELD = """(text) => {
    const held = new DataTransfer();
    held.items.add(new File([text], "prompts.txt"));
    return held;
}"""
PAINTED = """(canvases) => canvases.map((canvas) => {
    const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, width, height);
    return data.filter((value, i) => i % 4 === 3 && value).length;
})"""
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def opened(browser, scheme: str, width: int, met: dict) -> Page:
    """A page that notes what is said in it and whom it calls."""
    size = {"width": width, "height": 900}
    page = browser.new_context(color_scheme=scheme, viewport=size).new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda one: met["said"].append(f"{one.type}: {one.text}"))
    page.on("pageerror", lambda one: met["said"].append(f"error: {one}"))
    page.on("request", lambda one: met["called"].append(one.url))
    return page


def create(page: Page, told: dict) -> None:
    """Prompts dropped, the form filled in, the job made."""
    page.click("main .button")
    page.locator("#create:enabled").wait_for()
    page.select_option("#method", "pixel_reward")
    page.locator("#set-detector").wait_for()
    held = page.evaluate_handle(HELD, told["prompts"])
    page.dispatch_event("#drop", "drop", {"dataTransfer": held})
    page.locator("#uploads li", has_text="file-").wait_for()
    page.fill("#suffix", "softer hands")
    page.click("summary")
    for name, value in told["settings"].items():
        field = page.locator(f"#set-{name}")
        if isinstance(value, bool):
            field.set_checked(value)
        elif field.evaluate("(one) => one.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))
    page.click("#create")
    page.wait_for_url("**/jobs/ftjob-*")


def watched(page: Page, met: dict) -> None:
    """A picture and a checkpoint now; paused, gone on, and to the end."""
    page.locator("#curves svg polyline").first.wait_for()
    for act, told in (("sample", "drew after step"), ("save", "saved after step")):
        page.click(f"[data-act={act}]")
        page.locator("#events li", has_text=told).wait_for()
    met["asked"] = page.locator("#events li", has_text="as asked").all_inner_texts()
    page.click("[data-act=pause]")
    page.locator("#status.paused").wait_for()
    met["paused"] = page.inner_text("#steps")
    page.click("[data-act=resume]")
    page.locator("#status.succeeded").wait_for()
    met["steps"] = page.inner_text("#steps")
    met["memory"] = page.inner_text("#host")
    met["told"] = len(page.locator("#grid th", has_text="step").all())


def downloaded(page: Page, folder: str) -> str:
    row = page.locator("#files li", has_text=".safetensors")
    with page.expect_download() as coming:
        row.locator("button").click()
    target = Path(folder) / coming.value.suggested_filename
    coming.value.save_as(target)
    return str(target)


def looked(page: Page, url: str) -> dict:
    """The finished job, anew: its pictures, and what thresholds leave of their maps."""
    page.goto(url)
    page.locator("#grid img[src]").first.wait_for()
    page.check("#heated")
    painted = []
    for value in (0.0, 0.5, 1.0):
        page.locator("#threshold").fill(str(value))
        page.wait_for_timeout(500)
        painted.append(sum(page.locator("#grid canvas").evaluate_all(PAINTED)))
    page.locator("#threshold").fill("0.5")
    page.locator("#edge").fill("50")
    page.wait_for_timeout(500)
    return {"painted": painted, "wider": page.evaluate(WIDE)}


def main() -> None:
    told = json.load(sys.stdin)
    met = {"said": [], "called": [], "looks": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = opened(browser, "light", 1280, met)
        page.goto(told["url"])
        create(page, told)
        watched(page, met)
        met["file"] = downloaded(page, told["folder"])
        job = page.url
        for scheme, width in WAYS:
            page = opened(browser, scheme, width, met)
            met["looks"].append(looked(page, job))
            page.screenshot(path=Path(told["folder"]) / f"job-{scheme}-{width}.png")
        browser.close()
    print(json.dumps(met))


main()
