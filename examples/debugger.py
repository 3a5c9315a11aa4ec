"""The debugger's loop in Python: a prompt, a table, an ablation, a trace, the next table.

    python examples/debugger.py

Why does the bundled model close `return self` with a dot? Everything runs offline in seconds.
"""

import gossamer

PROMPT = "def add(self, other):\n    return self"
TARGET = gossamer.LogitDifference(".", "\n")


def show(title: str, analysis: gossamer.Analysis, n: int = 8) -> None:
    """The strongest rows, and what they add up to."""
    print(f"\n{title}: {analysis.target} = {analysis.value:+.3f}")
    for row in analysis.top(n):
        mark = " " if row.in_cut else "·"
        print(
            f"{mark} {row.node:34} {row.token!r:10} direct {row.direct:+7.3f}  "
            f"total {row.total:+7.3f}  {row.label}"
        )
    print(analysis.sums[0].sentence)


def main() -> None:
    """One turn of the loop after the other."""
    model = gossamer.load_model("pico-python")
    saes = gossamer.load_saes("pico-python/transcoders")

    # 1. What gives the dot its logit? Every node's direct effect; they add up.
    first = gossamer.analyze(model, PROMPT, TARGET, saes)
    show("All nodes", first)

    # 2. The strongest head: what does it look at? The same table by query and key.
    pairs = gossamer.analyze(model, PROMPT, TARGET, saes, kinds="pair", pairs=True)
    show("Heads by key", pairs, 5)
    pair = next(row for row in pairs.top(20) if row.kind == "pair")

    # 3. Take it away. What really changes, beside what the gradient said?
    without = gossamer.analyze(
        model, PROMPT, TARGET, saes, gossamer.Ablate(pair.node), kinds=["latent", "head"]
    )
    print(
        f"\nWithout {pair.node}: {without.change:+.3f}, the gradient said {without.estimate:+.3f}"
    )
    for row in gossamer.compare(without).rows[:5]:
        print(f"  {row.node:34} total {row.left['total']:+.3f}, before {row.right['total']:+.3f}")

    # 4. Why does it look there? Upstream of its score, through the query and through the key.
    for route in ("q", "k"):
        score = gossamer.upstream(model, PROMPT, pair.node, route, saes=saes)
        show(f"Through {route}", score, 4)

    # 5. Upstream of a latent, and what it speaks for.
    latent = next(row for row in first.rows if row.kind == "latent")
    show("Upstream of a latent", gossamer.upstream(model, PROMPT, latent.node, saes=saes), 4)
    site, _, unit = latent.node.rpartition("@")[0].rpartition("/")
    lens = gossamer.lens(model, site, int(unit), saes)
    print(f"{latent.node} speaks for {[token for token, _, _ in lens.up[:6]]}")
    print(f"and is spoken for by {[token for token, _, _ in lens.read_up[:6]]}")

    # 6. Any other scalar, after the run.
    errors = gossamer.scalars(first.trace, "error", "total", reduce="pos")
    print("\nTotal effect of what each transcoder misses:")
    for place, found in errors.items():
        print(f"  {place:24} {float(found.values):+.3f}")


if __name__ == "__main__":
    main()
