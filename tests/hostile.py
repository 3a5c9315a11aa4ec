"""A small matrix view whose texts try to break out of the page, and the numbers in it."""

import numpy as np

from gossamer.views import MatrixView, NodeColumn

HOSTILE = (
    *("</script><script>window.broken = 1</script>", "<img src=x onerror='window.broken = 1'>"),
    *("\u202eright\u2066 to left", "  two spaces", "\n\t", "漢字 🙂", "<!--", "שלום"),
)
"""Tokens: markup, direction marks, white space, wide and right-to-left letters."""

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")


def nodes(site: str, per_position: int, labels: tuple[str, ...] = HOSTILE[::-1]) -> NodeColumn:
    """Latents at every position of the hostile prompt."""
    positions = np.repeat(np.arange(len(HOSTILE)), per_position)
    indices = 100 + 7 * np.arange(len(positions))
    return NodeColumn(
        name=site,
        ids=[f"{site}/{i}@{p}" for i, p in zip(indices, positions, strict=True)],
        positions=positions,
        tokens=[HOSTILE[p] for p in positions],
        indices=indices,
        values=np.linspace(0.5, 3.0, len(positions)),
        labels=[labels[p] for p in positions],
    )


def hostile_view(**options: object) -> MatrixView:
    """Effects with zeros above the diagonal blocks, as causal effects have."""
    generator = np.random.default_rng(3)
    rows, columns = nodes(SITES[1], 2), nodes(SITES[0], 3)
    values = generator.normal(size=(len(rows), len(columns)))
    values *= rows.positions[:, None] >= columns.positions[None]
    # The strongest stay within a position, so that a cross-position filter rescales the colours.
    values *= np.where(rows.positions[:, None] == columns.positions[None], 10.0, 1.0)
    chosen = {
        "values": values,
        "gradients": values / columns.values,
        "rows": rows,
        "columns": columns,
        "title": f"Effects {HOSTILE[0]}",
        "note": HOSTILE[1],
        "prompt_tokens": HOSTILE,
    }
    return MatrixView(**{**chosen, **options})
