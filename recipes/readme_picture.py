"""Make the pictures in README and guide: pages of one prompt, as a browser shows them.

python recipes/readme_picture.py        # writes docs/graph.png, docs/edges.png; needs Chromium
"""

import os
import shutil
import tempfile
from pathlib import Path

import gossamer

PROMPT = "def add(self, other):\n    return self"
DOCS = Path(__file__).parent.parent / "docs"


def edges_page(model: gossamer.Model, path: Path) -> Path:
    """The matrix of effects between two residual SAEs."""
    saes = gossamer.load_saes("pico-python")
    source = gossamer.Latents("blocks.1.hook_resid_pre", top=120)
    target = gossamer.Latents("blocks.3.hook_resid_pre", top=120)
    edges = gossamer.edges(model, saes, PROMPT, source=source, target=target)
    assert isinstance(edges, gossamer.Edges)
    return edges.to_html(path, cross_only=False, threshold=1.0)


def graph_page(model: gossamer.Model, path: Path) -> Path:
    """The pruned graph of the prompt, its edges checked."""
    saes = gossamer.load_saes("pico-python/transcoders")
    graph = gossamer.attribute(model, saes, PROMPT)
    assert isinstance(graph, gossamer.Graph)
    circuit = graph.prune()
    report = gossamer.verify(circuit, model, saes)
    latents = [node.id for node in circuit.nodes if node.kind == "latent"]
    influence = dict(zip(circuit.nodes.ids, circuit.influence(), strict=True))
    pinned = sorted(latents, key=influence.__getitem__, reverse=True)[:6]
    targets = [circuit.nodes.id_of(int(i)) for i in circuit.nodes.targets[:1]]
    return circuit.to_html(path, verified=report.classes, pinned=[*pinned, *targets])


def main() -> None:
    from playwright.sync_api import sync_playwright

    model = gossamer.load_model("pico-python")
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        for name, make in (("edges", edges_page), ("graph", graph_page)):
            page = browser.new_page(viewport={"width": 1180, "height": 860})
            page.goto(make(model, Path(folder) / f"{name}.html").as_uri())
            page.wait_for_selector("[data-ready=true]")
            if name == "edges":
                page.locator(".plot").focus()
                page.keyboard.press("ArrowDown")  # the strongest entry shown
            page.wait_for_timeout(300)
            page.screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
