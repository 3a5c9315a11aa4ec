"""Names of places in a model, and of nodes at those places: one parser, one printer, one order.

A site is spelled as TransformerLens spells it: `hook_embed`, `blocks.3.hook_resid_pre`,
`blocks.3.attn.hook_pattern`, `ln_final.hook_normalized`. A node is a unit of a site at a position:

    blocks.3.hook_resid_pre/1234@7        latent 1234 at position 7
    blocks.3.hook_resid_pre/error@7       what the SAE misses there; likewise /bias and /remainder
    hook_embed/15496@0                    token id 15496
    blocks.9.attn.hook_z/6@14<-4          head 6, from query 14 to key 4
    logits/318@14                         the logit of token 318; logits/318-262@14 less that of 262
"""

import difflib
import re
from dataclasses import dataclass

from gossamer.errors import SiteError

BEFORE_BLOCKS = ("hook_embed", "hook_pos_embed")
"""Sites before the first block, in forward order."""

BLOCK_KINDS = (
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.q_norm.hook_scale",
    "attn.k_norm.hook_scale",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_v",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "ln1_post.hook_scale",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "ln2_post.hook_scale",
    "hook_mlp_out",
    "hook_resid_post",
)
"""Kinds of site inside one block, in forward order."""

AFTER_BLOCKS = ("ln_final.hook_scale", "ln_final.hook_normalized", "logits")
"""Sites after the last block, in forward order; `logits` ends every run."""

_NUMBER = r"(?:0|[1-9][0-9]*)"  # one spelling each, so that names can be compared as text
_BLOCK = re.compile(rf"blocks\.({_NUMBER})\.(.+)")
_NODE = re.compile(
    rf"(?P<site>[^/@]+)/(?P<unit>{_NUMBER}(?:-{_NUMBER})?|error|bias|remainder)@(?P<position>{_NUMBER})"
    rf"(?:<-(?P<key>{_NUMBER}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A parsed site. `layer` is None outside the blocks; sites compare in forward order."""

    order: tuple[int, int, int]
    """Sort key: (part of the model, layer, place within it)."""

    layer: int | None
    """Number of the block, from 0; None outside the blocks."""

    kind: str
    """The name without `blocks.<layer>.`."""

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"blocks.{self.layer}.{self.kind}"


def parse_site(name: str) -> Site:
    """The site called `name`. SiteError lists near names when there is none."""
    if name in BEFORE_BLOCKS:
        return Site((0, 0, BEFORE_BLOCKS.index(name)), None, name)
    if name in AFTER_BLOCKS:
        return Site((2, 0, AFTER_BLOCKS.index(name)), None, name)
    match = _BLOCK.fullmatch(name)
    if match and match[2] in BLOCK_KINDS:
        layer = int(match[1])
        return Site((1, layer, BLOCK_KINDS.index(match[2])), layer, match[2])
    inside = [f"blocks.{match[1] if match else 0}.{kind}" for kind in BLOCK_KINDS]
    raise unknown_site(name, [*BEFORE_BLOCKS, *inside, *AFTER_BLOCKS])


def unknown_site(name: str, known: list[str]) -> SiteError:
    """The error for a site that is not among `known`, with up to five near names."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:5]
    return SiteError(f'No site "{name}" here. Near names: {", ".join(near)}.')


def is_before(first: str, second: str) -> bool:
    """Whether `first` comes strictly before `second` in the forward pass."""
    return parse_site(first).order < parse_site(second).order


@dataclass(frozen=True, slots=True)
class NodeId:
    """A node: a unit of a site at a position (see the module's examples)."""

    site: str
    """A site, or a module such as `blocks.3.attn` for its bias or remainder."""

    unit: int | str
    """Latent, token id, head or logit as a number; or "error", "bias", "remainder", or two tokens
    as "318-262"."""

    position: int
    """Position in the prompt, from 0, BOS included; the query position of a head."""

    key_position: int | None = None
    """The attended-to position of a head; None for everything else."""

    def __str__(self) -> str:
        arrow = "" if self.key_position is None else f"<-{self.key_position}"
        return f"{self.site}/{self.unit}@{self.position}{arrow}"


def parse_node(text: str) -> NodeId:
    """The node written as `text`; the inverse of `str(node)`."""
    match = _NODE.fullmatch(text)
    if match is None:
        raise SiteError(
            f'"{text}" is not a node. Write site/unit@position, for example '
            "blocks.3.hook_resid_pre/1234@7, the unit being a number, error, bias or remainder."
        )
    if "-" in match["unit"] and match["site"] != "logits":
        raise SiteError(f'"{text}" is not a node: differences are of logits, as logits/318-262@14.')
    unit = int(match["unit"]) if match["unit"].isdigit() else match["unit"]
    key = None if match["key"] is None else int(match["key"])
    return NodeId(match["site"], unit, int(match["position"]), key)
