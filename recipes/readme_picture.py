"""Make the picture in the README: the page of one prompt's edges, as a browser shows it.

python recipes/readme_picture.py        # writes docs/edges.png; needs Chromium and Playwright
"""

import os
import shutil
import tempfile
from pathlib import Path

import gossamer

PROMPT = "def add(self, other):\n    return self"
PICTURE = Path(__file__).parent.parent / "docs" / "edges.png"


def main() -> None:
    from playwright.sync_api import sync_playwright

    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    source = gossamer.Latents("blocks.1.hook_resid_pre", top=120)
    target = gossamer.Latents("blocks.3.hook_resid_pre", top=120)
    edges = gossamer.edges(model, saes, PROMPT, source=source, target=target)
    assert isinstance(edges, gossamer.Edges)
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = edges.to_html(Path(folder) / "edges.html", cross_only=False, threshold=1.0)
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1180, "height": 860})
        page.goto(page_file.as_uri())
        page.wait_for_selector("[data-ready=true]")
        page.locator(".plot").focus()
        page.keyboard.press("ArrowDown")  # the strongest entry shown
        page.wait_for_timeout(300)
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
