"""How the number that a direction names is read off a run, with its gradient.

    s = what `of` gives            r = the residual stream at `residual`, the last before s
    s = Σ_t g[t] · r[t] + constant,     g = ∂s/∂r

With norm scales held s is affine in r for every linear direction, and the constant is its bias;
else the constant is the remainder: what of s is not linear in r.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gossamer.analysis.directions import Direction, is_residual
from gossamer.errors import PromptError, SiteError
from gossamer.models.blocks import BlockSetting
from gossamer.models.model import Model
from gossamer.saes.sae import SparseCoder
from gossamer.sites import parse_site
from gossamer.splice import flat

FINAL = "ln_final.hook_normalized"
"""Where logits are read."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass showed, with its graph."""

    model: Model
    """The model that ran."""

    values: Mapping[str, Tensor]
    """(batch, pos, …) by site."""

    inputs: Mapping[str, Tensor]
    """(batch, pos, d_in) what spliced SAEs read, by the site each one writes."""

    settings: Mapping[int, BlockSetting]
    """How each block's attention was called."""

    def read_by(self, sae: SparseCoder) -> Float[Tensor, "batch pos d_in"]:
        """What an SAE reads, before its own splice where it is spliced in."""
        if sae.site_out in self.inputs:
            return self.inputs[sae.site_out]
        return flat(self.values[sae.site_in])

    def stream(self, found: "Reading") -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that a number is read from."""
        own = self.inputs.get(found.splice or "")
        return self.values[found.residual] if own is None else own


Value = Callable[[Seen, int, Tensor | None], Tensor]
"""(what was seen, row of the batch, what it is read along) → s. Read along: the direction
downstream of a trace through v, (pos, d_model); in an edited row the clean log-probabilities for a
KL and the likeliest token, (d_vocab); else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One direction of one prompt, ready to be read."""

    direction: Direction
    """What was asked."""

    sites: tuple[str, ...]
    """Sites that must be seen."""

    residual: str
    """The stream that s is read from."""

    position: int
    """Where s is, from 0."""

    constant: str
    """Id of the row of what of s no node of the stream gives."""

    times: int = 1
    """How often s is counted in the sum of all rows: twice in a trace through q and k."""

    of: Value
    """s, a scalar tensor."""

    splice: str | None = None
    """Of a latent in the stream: the site of its SAE, before whose splice the stream is read."""

    downstream: "Reading | None" = None
    """Of a trace through v: what it is traced from."""


def at_position(position: int, n: int) -> int:
    """A position from 0. PromptError when the prompt does not have it."""
    if not -n <= position < n:
        raise PromptError(
            f"Position {position} is not in the prompt, which has {n} tokens (0..{n - 1})."
        )
    return position % n


def read_before(model: Model, site: str) -> str:
    """The last residual stream from which the value at a site is made."""
    parsed = parse_site(site)
    if is_residual(site):
        return site
    if parsed.layer is None:
        if site.startswith("ln_final") or site == "logits":
            return f"blocks.{model.n_layers - 1}.hook_resid_post"
        raise SiteError(f"Nothing is upstream of {site}; name a site inside the blocks.")
    inside_mlp = parsed.kind.startswith(("ln2", "mlp", "hook_mlp"))
    kind = "hook_resid_mid" if inside_mlp and not model.layout.parallel else "hook_resid_pre"
    return f"blocks.{parsed.layer}.{kind}"


def constant(name: str, position: int, affine: bool) -> str:
    """The id of the row of what of s no node of the stream gives."""
    return f"{name}/{'bias' if affine else 'remainder'}@{position}"
