"""What a format has room for: whether it can say what an SAE does, and the facts it keeps beside.

A format that can not say everything that an SAE of ours does is described by a `Room`; what does
not fit is refused in one sentence before anything is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gossamer.errors import FormatError
from gossamer.saes.native import read_json
from gossamer.saes.sae import SAE
from gossamer.saes.topk import TopK
from gossamer.sites import parse_site

Sites = str | tuple[str, str] | None
"""A site given by the caller: one, a pair (read, written), or None to believe the file."""

OWN = "gossamer"
"""Key, in a format's JSON or YAML, of what only we write there: other libraries pass over it."""

_FACTS = ("site_in", "site_out", "model_name", "prepend_bos", "metadata")


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a format can say."""

    label: str
    """Its name in a sentence."""

    selections: tuple[str, ...]
    """Selections by our words; "topk" keeps positive latents alone, "topk_signed" all chosen."""

    saes: bool = True
    """Whether it has SAEs that write where they read."""

    transcoders: bool = True
    """Whether it has SAEs that write another site than they read."""

    widths: bool = True
    """Whether a transcoder's two widths may differ."""

    skip: bool = False
    """Whether it has W_skip."""

    later: bool = False
    """Whether it has W_later, what latents write at later sites."""

    subtracts: bool = False
    """Whether it can take b_dec from the input."""

    normalizations: tuple[str, ...] = ("none",)
    """What it can do to each token before encoding."""

    def check(self, sae: SAE) -> None:
        """FormatError with what it has no room for."""
        signed = isinstance(sae.selection, TopK) and not sae.selection.relu
        selection = sae.selection.name + "_signed" * signed
        reason = None
        if selection not in self.selections:
            reason = f"{_said(selection)} (it has {', '.join(map(_said, self.selections))})"
        elif sae.is_transcoder and not self.transcoders:
            reason = f"transcoder, and this one reads {sae.site_in} and writes {sae.site_out}"
        elif not sae.is_transcoder and not self.saes:
            reason = f"SAE that writes where it reads ({sae.site_in}), only transcoders"
        elif sae.d_in != sae.d_out and not self.widths:
            reason = f"transcoder of two widths ({sae.d_in} and {sae.d_out})"
        elif sae.W_skip is not None and not self.skip:
            reason = "skip connection"
        elif sae.sites_later and not self.later:
            reason = f"latents that write several sites, here {', '.join(sae.sites_later)} too"
        elif sae.subtract_b_dec and not self.subtracts:
            reason = "encoder that subtracts b_dec from its input; fold it into b_enc"
        elif sae.normalization not in self.normalizations:
            reason = f"normalization of its input ({sae.normalization})"
        if reason is not None:
            raise FormatError(f"{self.label} has no {reason}; save it with sae.save.")


def _said(selection: str) -> str:
    words = {"topk": "TopK", "topk_signed": "TopK that keeps negative latents"}
    return words.get(selection, selection)


def facts_of(sae: SAE) -> dict[str, Any]:
    """What an SAE says of itself beside its tensors, for the key `OWN` of a config."""
    return {name: getattr(sae, name) for name in _FACTS}


def with_sites(
    facts: dict[str, Any], site: Sites, *, transcoder: bool, where: Path
) -> dict[str, Any]:
    """The facts with the sites that the caller names; for a transcoder one site is the written.

    FormatError when a site is in neither; SiteError when it is none.
    """
    found = dict(facts)
    if isinstance(site, tuple):
        found["site_in"], found["site_out"] = site
    elif site is not None:
        found["site_out"] = site
        if not transcoder:
            found["site_in"] = site
    for name in ("site_in", "site_out"):
        if not isinstance(found.get(name), str):
            which = "read" if name == "site_in" else "written"
            raise FormatError(
                f'{where} does not say which site is {which}; pass site="blocks.3.hook_resid_post" '
                "or the like, or a pair (site read, site written)."
            )
        parse_site(found[name])
    return found


def own_facts(config: dict[str, Any]) -> dict[str, Any]:
    """The facts under `OWN`; empty in a file that another library wrote."""
    found = config.get(OWN)
    return {name: found[name] for name in _FACTS if name in found} if found else {}


def config_beside(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty when there is no file."""
    return read_json(path) if path.is_file() else {}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by the names in a safetensors file, no tensor read; empty when it is none."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError):
        return {}
