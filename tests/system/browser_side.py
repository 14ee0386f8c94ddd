"""A service's address in; what a person met who went through its dashboard out.

Run in .venv-browser, which holds Playwright; the browser is Debian's Chromium.
"""

import json
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
PATIENCE = 90_000
"""Milliseconds: the first question about settings waits for torch."""
NAME = "<b>first</b>"
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACK = "getComputedStyle(document.body).backgroundColor"
HELD = """() => {
    const held = new DataTransfer();
    held.items.add(new File(["a left hand\\n"], "prompts.txt"));
    return held;
}"""
DRAWN = "document.getElementById('before').naturalWidth"
PAINTED = """(canvas) => {
    const { width, height } = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, width, height);
    return data.filter((value, i) => i % 4 === 3 && value).length / (width * height);
}"""

FIGURES = """async () => {
    const { add, held } = await import("/static/figures.js");
    const { draw } = await import("/static/curves.js");
    const curves = held(JSON.parse('{"constructor": [[0, 1]]}'));
    for (let step = 1; step <= 5000; step++) {
        add(curves, { step, loss: -step, ["__proto__"]: 2, constructor: 3, note: "x" });
    }
    const said = Object.keys(curves).sort().map((name) => [name, ...curves[name].at(-1)]);
    const longest = Math.max(...Object.values(curves).map((line) => line.length));
    curves.loss = Array.from({ length: 300000 }, (_, i) => [i, i]);
    const [groups, others, around] = [0, 0, 0].map(() => document.createElement("div"));
    around.append(others);
    draw(curves, groups, others);
    const drawn = groups.querySelectorAll("svg").length + others.querySelectorAll("svg").length;
    return { said, longest, drawn };
}"""


def watched(page: Page, met: dict) -> None:
    """Note what a page says and whom it calls."""
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda one: met["said"].append(f"{one.type}: {one.text}"))
    page.on("pageerror", lambda one: met["said"].append(f"error: {one}"))
    page.on("request", lambda one: met["called"].append(one.url))


def look(page: Page, met: dict, name: str, folder: Path | None) -> None:
    """How far the page is wider than the screen, and a picture of it."""
    met["wider"][name] = page.evaluate(WIDE)
    if folder:
        page.screenshot(path=folder / f"{name}-{met['scheme']}-{met['width']}.png", full_page=True)


def upload(page: Page, dropped: bool) -> None:
    """Prompts, by the file field or dropped."""
    if not dropped:
        prompts = {"name": "prompts.txt", "mimeType": "text/plain", "buffer": b"a left hand\n"}
        page.set_input_files("#upload", files=[prompts])
        return
    held = page.evaluate_handle(HELD)
    page.dispatch_event("#drop", "drop", {"dataTransfer": held})


def create(page: Page, url: str, steps: int, met: dict, folder: Path | None) -> None:
    """From the list to the new job's page."""
    page.goto(url)
    page.locator("#jobs tr, #none:visible").first.wait_for()
    page.click("main .button")
    page.locator("#create:enabled").wait_for()
    page.select_option("#method", "toy")
    page.locator("#set-seconds").wait_for(state="attached")
    upload(page, dropped=met["width"] > 1000)
    page.locator("#uploads li", has_text="file-").wait_for()
    page.click("#uploads li button")
    page.locator("#uploads li").wait_for(state="detached")
    met["deleted"] = page.input_value("#set-prompts")
    upload(page, dropped=met["width"] > 1000)
    page.locator("#uploads li", has_text="file-").wait_for()
    met["training_file"] = page.input_value("#set-prompts")
    page.fill("#set-steps", str(steps))
    page.fill("#suffix", NAME)
    page.click("summary")
    page.check("#set-pictures")
    page.fill("#set-seconds", "0.2")
    page.click("#check")
    page.locator("#plan").wait_for()
    met["plan"] = json.loads(page.inner_text("#resolved"))
    look(page, met, "new", folder)
    page.click("#create")
    page.wait_for_url("**/jobs/ftjob-*")


def paused(page: Page, met: dict) -> None:
    """Pause, look again, and go on."""
    page.locator("#curves svg polyline").first.wait_for()
    page.click("[data-act=pause]")
    page.locator("#status.paused").wait_for()
    met["at_pause"] = page.inner_text("#steps")
    page.reload()
    page.locator("#status.paused").wait_for()
    page.locator("#curves svg").first.wait_for()
    met["after_reload"] = page.inner_text("#steps")
    page.click("[data-act=resume]")


def finished(page: Page, met: dict, folder: Path | None) -> None:
    """The end of the job without a reload, and its files."""
    page.locator("#status.succeeded").wait_for()
    row = page.locator("#files li", has_text="thing.txt")
    with page.expect_download() as coming:
        row.locator("button").click()
    met["file"] = coming.value.suggested_filename, Path(coming.value.path()).read_text()
    page.locator("#grid img[src]").first.wait_for()
    page.locator("#after[src]").wait_for(state="attached")
    page.locator("#edge").fill("30")
    page.locator("#map[src]").wait_for()
    end = time.monotonic() + 20
    while not page.evaluate(DRAWN) and time.monotonic() < end:
        time.sleep(0.1)
    met["picture"] = page.evaluate(DRAWN)
    met["cells"] = page.locator("#grid img[src]").count()
    met["curves"] = page.locator("#curves svg").count()
    met["title"] = page.inner_text("#title")
    met["markup"] = page.locator("#title b, #grid hand").count()
    met["prompt"] = page.inner_text("#grid th[scope=row] >> nth=0")
    met["back"] = page.evaluate(BACK)
    met["steps"] = page.inner_text("#steps")
    met["log"] = page.inner_text("#log")
    met["summary"] = page.inner_text("#told")
    look(page, met, "job", folder)


def painted(page: Page, canvas: str, slider: str, thresholds: list[float]) -> list[float]:
    """The share of a picture that a threshold leaves coloured, for each."""
    shares = []
    for value in thresholds:
        page.locator(slider).fill(str(value))
        page.wait_for_timeout(300)
        shares.append(page.locator(canvas).first.evaluate(PAINTED))
    return shares


def looked(page: Page, met: dict) -> None:
    """Maps laid over pictures, and a detector's page."""
    met["unasked"] = page.locator("#before-map").evaluate(PAINTED)
    page.check("#heated")
    met["heat"] = painted(page, "#before-map", "#threshold", [0.2, 0.6, 0.7])
    met["cell_heat"] = painted(page, "#grid canvas", "#threshold", [0.6, 0.7])
    met["cases"] = painted(page, "#cases canvas", "#from", [0.6, 0.7])
    page.select_option("#layer", "")
    met["no_layer"] = painted(page, "#cases canvas", "#from", [0.1])
    met["categories"] = page.inner_text("#categories")
    met["reliability"] = page.locator("#reliability circle").count()


def walk(browser, url: str, scheme: str, width: int, folder: Path | None) -> dict:
    met = {"scheme": scheme, "width": width, "said": [], "called": [], "wider": {}}
    size = {"width": width, "height": 900}
    with browser.new_context(color_scheme=scheme, viewport=size) as context:
        page = context.new_page()
        watched(page, met)
        create(page, url, 30, met, folder)
        if (scheme, width) == ("light", 390):
            paused(page, met)
        finished(page, met, folder)
        looked(page, met)
        page.goto(url)
        page.locator("#jobs tr").first.wait_for()
        look(page, met, "list", folder)
    return met


def cancelled(browser, url: str) -> dict:
    met = {"said": [], "called": [], "wider": {}, "scheme": "light", "width": 1280}
    with browser.new_context() as context:
        page = context.new_page()
        watched(page, met)
        page.on("dialog", lambda one: one.accept())
        create(page, url, 500, met, None)
        page.locator("#status.running").wait_for()
        page.click("[data-act=cancel]")
        page.locator("#status.cancelled").wait_for()
        met["asks"] = page.locator("#acts button:enabled").count()
        met["figures"] = page.evaluate(FIGURES)
    return met


def asked(browser, url: str, token: str) -> dict:
    """A service with tokens: asked once, kept for the tab only."""
    met = {"said": [], "called": [], "wider": {}}
    with browser.new_context() as context:
        page = context.new_page()
        watched(page, met)
        page.goto(url)
        page.locator("#ask").wait_for()
        met["before"] = page.locator("#jobs tr").count()
        page.fill("#token", "dd_wrong")
        with page.expect_response(lambda one: one.status == 401):
            page.click("#ask button")
        page.locator("#ask").wait_for()
        page.fill("#token", token)
        page.click("#ask button")
        page.locator("#jobs tr").first.wait_for()
        page.reload()
        page.locator("#jobs tr a").last.click()
        page.locator("#grid img[src]").first.wait_for()
        with page.expect_download() as coming:
            page.locator("#files li", has_text="thing.txt").locator("button").click()
        met["file"] = Path(coming.value.path()).read_text()
        other = context.new_page()
        other.set_default_timeout(PATIENCE)
        other.goto(url)
        other.locator("#ask").wait_for()
        met["others"] = other.locator("#jobs tr").count()
    return met


def main() -> None:
    told = json.load(sys.stdin)
    folder = Path(told["folder"]) if told.get("folder") else None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        if told.get("token"):
            met = asked(browser, told["url"], told["token"])
        else:
            ways = [(s, w) for w in (390, 1280) for s in ("light", "dark")]
            met = {"walks": [walk(browser, told["url"], *way, folder) for way in ways]}
            met["cancelled"] = cancelled(browser, told["url"])
        browser.close()
    print(json.dumps(met))


main()
