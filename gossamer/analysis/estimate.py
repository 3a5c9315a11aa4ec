"""What the clean run's gradient says that edits do to the number, to first order.

Σ_edits (x_edited − x_clean) · ∂s/∂x      each edit as it would change the clean run's value
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.analysis.view import View
from gossamer.edits import PATTERNS, AbstractEdit, apply_edits, resolved
from gossamer.saes.rows import write_rows


def estimated_change(clean: View, edits: Sequence[AbstractEdit]) -> float:
    """The first-order change of the number that a clean run explains."""
    total = 0.0
    groups: dict[tuple[str, str], list[AbstractEdit]] = {}
    for edit in resolved(edits, clean.saes):
        part = edit.part or ("value" if edit.latents is None else "latents")
        groups.setdefault((edit.at, part), []).append(edit)
    for (site, part), some in groups.items():
        # A position embedding is added to the token's, and so has its gradient.
        of = "hook_embed" if site == "hook_pos_embed" else site
        if of not in clean.gradients:
            continue  # the number does not depend on it
        gradient = clean.gradients[of]
        if part == "latents":
            total += _of_latents(clean, site, some, gradient.flatten(1))
            continue
        value = clean.at(site) if part == "value" else clean.pieces(site)["error"]
        change = _change(some, value)
        total += float((change.flatten() * gradient.flatten()).sum())
    return total


def _change(edits: Sequence[AbstractEdit], value: Float[Tensor, "*shape"]) -> Tensor:
    """What edits make of a value, less the value."""
    n = value.shape[-1] if edits[0].at.endswith(PATTERNS) else len(value)
    positions = torch.arange(n, device=value.device)[None]
    mask = torch.ones_like(positions, dtype=torch.bool)
    edited = apply_edits(edits, value[None], positions, mask)[0]
    # Scores that a query does not see are −∞ before and after.
    return torch.where(edited == value, 0, edited - value).detach()


def _of_latents(
    clean: View, site: str, edits: Sequence[AbstractEdit], gradient: Float[Tensor, "pos width"]
) -> float:
    """Σ Δf · (what the latent writes · ∂s/∂ the value at the site)."""
    active, sae, x = clean.active(site), clean.saes[site], clean.read_by(site)
    latents = active.values.new_zeros(clean.n, clean.d_sae(site))
    latents[active.positions, active.units] = active.values
    change = _change(edits, latents)
    positions, units = change.nonzero(as_tuple=True)
    rows = write_rows(sae, units, x[positions])
    by_latent = (rows * gradient[positions].to(rows)).sum(1)
    return float((by_latent * change[positions, units]).sum())
