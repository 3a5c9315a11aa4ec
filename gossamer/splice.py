"""Run a model with SAEs and edits in it; what the run left behind is a `Trace`.

At one site, in this order: edits of the value → splice of the SAE that writes there → record. With
x what the SAE reads, y the value it writes over, f₀ = encode(x), and f = f₀ after edits of latents:

    reconstruction = decode(f, x)      error = y − decode(f₀, x)      value = reconstruction + error

so without edits the value is y; where SAEs from before write too, the reconstruction is the sum of
all (`gossamer.saes.sets`). Edits of the error change it right before it is added. `error` says
what the error term is: "attached" (as above: gradients upstream are those of the model without
SAEs), "detached" (the same numbers, no gradient), "frozen" (the numbers of the clean run, whatever
is edited), "dropped" (zero).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gossamer.edits import AbstractEdit, apply_edits, resolved
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.models.model import Model
from gossamer.models.prompts import Prompt, TokenBatch, as_prompts
from gossamer.models.taps import Tap, remember
from gossamer.saes.crosscoder import Face, held, shared_edits, sites_read
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.sets import as_saes, decoded, sites_later
from gossamer.sites import is_before, parse_site

ErrorMode = Literal["attached", "detached", "frozen", "dropped"]
"""What the error term of a splice is; see the top of this module."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What one run left: everything by site, the batch axis first, padding on the right."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids; 0 where padded."""

    mask: Bool[Tensor, "batch pos"]
    """True at real tokens."""

    logits: Float[Tensor, "batch pos d_vocab"] | None
    """Next-token scores; None when the run stopped before them."""

    activations: dict[str, Tensor] = field(default_factory=dict)
    """The value at each recorded site, after edits and splice."""

    latents: dict[str, Tensor] = field(default_factory=dict)
    """(batch, pos, d_sae) after edits, by the site the SAE writes."""

    pre_activations: dict[str, Tensor] = field(default_factory=dict)
    """(batch, pos, d_sae) before the SAE's selection, by the site the SAE writes."""

    reconstructions: dict[str, Tensor] = field(default_factory=dict)
    """(batch, pos, d_out) decoded from the latents after edits, by the site the SAE writes."""

    errors: dict[str, Tensor] = field(default_factory=dict)
    """(batch, pos, d_out) error term as it was added, after edits, by the site the SAE writes."""

    model: Model | None = None
    """What ran."""

    saes: Mapping[str, SparseCoder] = field(default_factory=dict)
    """The SAEs that were passed, by the site each one writes."""

    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the number that `analyze` explains, by the value at each site; else empty."""

    read: str | None = None
    """The residual stream from which that number is read; None: there is no such number."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """(batch, pos, d_in) what each SAE read, before its own splice, by the site it writes; of SAEs
    whose site_in is recorded."""

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each prompt."""
        return self.mask.sum(-1).tolist()


def check_saes(model: Model, saes: Mapping[str, SparseCoder]) -> None:
    """Refuse SAEs at sites the model does not have, of the wrong width, or that write before they
    read."""
    for sae in saes.values():
        written = ((site, "d_out") for site in (sae.site_out, *sites_later(sae)))
        for site, name in ((sae.site_in, "d_in"), *written):
            width = model.width(site)
            got = getattr(sae, name, width)
            if got != width:
                raise ShapeError(
                    f"The SAE at {sae.site_out} has {name}={got}, but {site} of {model.name} has "
                    f"width {width}. Check that the SAE belongs to this model and site."
                )
        if is_before(sae.site_out, sae.site_in):
            raise SiteError(
                f"An SAE reads {sae.site_in} and writes {sae.site_out}, which comes before it. "
                "A transcoder's site_out must come after its site_in."
            )


def chosen_bos(
    prepend_bos: bool | None, saes: Iterable[SparseCoder], prompts: Sequence[Prompt] | None = None
) -> bool | None:
    """What the call says about BOS, else what the SAEs' files say. An error where they disagree,
    unless no prompt is a text: nothing is put before token ids and chats."""
    if prompts is not None and not any(isinstance(prompt, str) for prompt in prompts):
        return None
    said = {
        sae.site_out: bos for sae in saes if (bos := getattr(sae, "prepend_bos", None)) is not None
    }
    values = set(said.values()) | ({prepend_bos} - {None})
    if len(values) > 1:
        files = ", ".join(f"{site}: {bos}" for site, bos in said.items())
        if prepend_bos is None:
            raise GossamerError(
                f"The SAEs' files disagree about a beginning-of-sequence token ({files}). "
                "Use SAEs that agree, or give token ids."
            )
        raise GossamerError(
            f"prepend_bos={prepend_bos} was asked for, but the SAEs' files say {files}. "
            "Leave prepend_bos out, use SAEs that agree, or give token ids."
        )
    return values.pop() if values else None


def run(  # noqa: PLR0913, PLR0917  the public face, fixed by the design
    model: Model,
    prompts: Any,
    saes: Any = None,
    edits: AbstractEdit | Sequence[AbstractEdit] = (),
    record: str | Sequence[str] = (),
    error: ErrorMode = "attached",
    *,
    logits: bool = True,
    prepend_bos: bool | None = None,
    record_device: torch.device | str | None = None,
) -> Trace:
    """Run `model` on one prompt or many, of any lengths, with SAEs spliced in and edits made.

    Args:
        model: what to run.
        prompts: a text, token ids, chat messages, or a list of these; the trace always has a batch
            axis.
        saes: None, an SAE, several, or a mapping; several may stand at different sites of one run.
        edits: changes at sites or of latents, one or several, made in the order given.
        record: a further site, or several, whose values the trace keeps.
        error: what the splice adds to the reconstruction; see the top of this module.
        logits: False stops the run right after the last site it needs.
        prepend_bos: overrides the family's rule for texts.
        record_device: where recorded tensors go; None leaves them where they are.

    Gradients reach everything the trace holds, unless the call is made under torch.no_grad().
    """
    coders = as_saes(saes, faces=True, later=True)
    check_saes(model, coders)
    members = as_prompts(prompts)
    bos = chosen_bos(prepend_bos, coders.values(), members)
    batch = model.batch(members, prepend_bos=bos)
    changes = (edits,) if isinstance(edits, AbstractEdit) else tuple(edits)
    kept = (record,) if isinstance(record, str) else tuple(record)
    return run_batch(model, batch, coders, Plan(changes, kept, error, logits, record_device))


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run: the arguments of `run` but for the model, the prompts and the SAEs."""

    edits: tuple[AbstractEdit, ...] = ()
    """Changes, in order."""

    record: tuple[str, ...] = ()
    """Sites to keep."""

    error: ErrorMode = "attached"
    """The error term."""

    logits: bool = True
    """Whether to run to the end."""

    record_device: torch.device | str | None = None
    """Where recorded tensors go."""

    def __post_init__(self) -> None:
        if self.error not in get_args(ErrorMode):
            raise GossamerError(
                f'error is one of {", ".join(get_args(ErrorMode))}, got "{self.error}".'
            )


def run_batch(
    model: Model, batch: TokenBatch, saes: Mapping[str, SparseCoder], plan: Plan = Plan()
) -> Trace:
    """`run` on tokens that are padded and checked already."""
    if reads := {s for sae in saes.values() if isinstance(sae, Face) for s in sites_read(sae)}:
        saes = held(saes, _clean_values(model, batch, reads))
    plan = replace(plan, edits=resolved(shared_edits(plan.edits, saes), saes))
    _check_edits(model, plan, saes)
    clean_errors = _clean_errors(model, batch, saes) if plan.error == "frozen" else {}
    splicer = _Splicer(batch, saes, plan, clean_errors, Trace(batch.tokens, batch.mask, None))
    sites = {*plan.record, *(edit.at for edit in plan.edits)}
    for sae in saes.values():
        sites |= {sae.site_in, sae.site_out}
    if torch.is_grad_enabled():
        sites.add("hook_embed")
    taps: dict[str, Tap] = {site: splicer.tap(site) for site in sorted(sites, key=_forward_order)}
    out = model.forward(batch, taps, to_the_end=plan.logits or not taps)
    if plan.record_device is not None and out is not None:
        out = out.to(plan.record_device)
    return replace(splicer.trace, logits=out, model=model, saes=saes)


def _check_edits(model: Model, plan: Plan, saes: Mapping[str, SparseCoder]) -> None:
    """Refuse edits at sites the model does not have, or of SAEs that are not there."""
    for edit in plan.edits:
        model.check_site(edit.at)
        if (edit.latents is not None or edit.part is not None) and edit.at not in saes:
            what = "latents" if edit.part is None else "the error"
            raise SiteError(
                f"An edit names {what} at {edit.at}, where no SAE is spliced; SAEs write "
                f"{', '.join(saes) or 'nowhere'} here. Pass the SAE in saes=, or edit the site."
            )
        if edit.part is not None and plan.error == "dropped":
            raise SiteError(
                f'An edit names the error at {edit.at}, and error="dropped" leaves errors out. '
                "Take another of attached, detached and frozen."
            )


def _forward_order(site: str) -> tuple[int, int, int]:
    return parse_site(site).order


def _clean_errors(
    model: Model, batch: TokenBatch, saes: Mapping[str, SparseCoder]
) -> dict[str, Tensor]:
    """Each SAE's error in the run without SAEs and edits."""
    sites = {site for sae in saes.values() for site in (sae.site_in, sae.site_out)}
    seen = _clean_values(model, batch, sites)
    with torch.no_grad():
        read = {site: seen[sae.site_in] for site, sae in saes.items()}
        kept = {site: sae.encode(read[site]) for site, sae in saes.items() if sites_later(sae)}
        return {
            site: seen[site]
            - decoded(saes, site, {site: sae.encode(read[site]), **kept}, read[site])
            for site, sae in saes.items()
        }


def _clean_values(model: Model, batch: TokenBatch, sites: set[str]) -> dict[str, Tensor]:
    """Some sites in the run without SAEs and edits, heads side by side."""
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        model.forward(batch, {site: remember(seen, site) for site in sites}, to_the_end=not sites)
    return {site: flat(value) for site, value in seen.items()}


def flat(value: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch pos width"]:
    """A site's value with heads side by side, as SAEs see it."""
    return value.flatten(2)


@dataclass(frozen=True, slots=True)
class _Read:
    """What an SAE read: its input, its latents, and the latents after edits."""

    x: Tensor
    unedited: Tensor
    latents: Tensor


@dataclass(frozen=True, slots=True)
class _Splicer:
    """Makes the function that stands at each site of one run, and gathers the trace."""

    batch: TokenBatch
    saes: Mapping[str, SparseCoder]
    plan: Plan
    clean_errors: Mapping[str, Tensor]
    trace: Trace
    reads: dict[str, _Read] = field(default_factory=dict)

    def tap(self, site: str) -> Tap:
        """Edit → splice → let transcoders read → record."""
        value_edits = self.edits(site, "value")
        writer = self.saes.get(site)
        readers = [sae for sae in self.saes.values() if sae.site_in == site and sae is not writer]
        return partial(self.at_site, site, value_edits, writer, readers)

    def at_site(  # noqa: PLR0917  all but the value are fixed when the run begins
        self,
        site: str,
        edits: Sequence[AbstractEdit],
        writer: SparseCoder | None,
        readers: Sequence[SparseCoder],
        value: Tensor,
    ) -> Tensor:
        """What the run goes on with."""
        if site == "hook_embed" and torch.is_grad_enabled():
            value = value.detach().requires_grad_()  # where every gradient of this run ends
        value = self.edited(edits, value)
        if writer is not None:
            if writer.site_in == site:
                self.read(writer, flat(value))
            value = self.write(writer, flat(value)).reshape(value.shape)
        for reader in readers:
            self.read(reader, flat(value))
        if site in self.plan.record:
            self.keep(self.trace.activations, site, value)
        return value

    def read(self, sae: SparseCoder, x: Float[Tensor, "batch pos d_in"]) -> None:
        """Encode what is at `site_in`, and edit the latents."""
        site = sae.site_out
        if sae.site_in in self.plan.record:
            self.keep(self.trace.inputs, site, x)
        # Views, so that a gradient by latents or pre-activations goes through the reconstruction
        # alone, not the error.
        if isinstance(sae, SAE):
            pre = sae.pre_activations(x)
            unedited = sae.activate(pre)
            pre = pre.view_as(pre)
            self.keep(self.trace.pre_activations, site, pre)
            latents = torch.where(unedited.detach() != 0, pre, 0)
        else:
            unedited = sae.encode(x)
            latents = unedited.view_as(unedited)
        latents = self.edited(self.edits(site, "latents"), latents)
        self.keep(self.trace.latents, site, latents)
        self.reads[site] = _Read(x, unedited, latents)

    def write(self, sae: SparseCoder, y: Float[Tensor, "batch pos d_out"]) -> Tensor:
        """What goes on from `site_out`: reconstruction plus error."""
        site = sae.site_out
        x = self.reads[site].x
        reconstruction = decoded(self.saes, site, self.latents(edited=True), x)
        self.keep(self.trace.reconstructions, site, reconstruction)
        unedited = None
        if self.plan.error == "dropped":
            error = torch.zeros_like(y)
        elif self.plan.error == "frozen":
            error = self.clean_errors[site]
        else:
            unedited = decoded(self.saes, site, self.latents(edited=False), x)
            error = y - unedited
        if self.plan.error != "attached":
            error = error.detach().requires_grad_(torch.is_grad_enabled())
        unedited_error = error
        error = self.edited(self.edits(site, "error"), error)
        self.keep(self.trace.errors, site, error)
        value = reconstruction + error
        if unedited is not None:
            # The same sum without its rounding: exactly y where nothing was edited, and exactly
            # the reconstruction where the error was taken away.
            exact = y + (reconstruction - unedited)
            if error is not unedited_error:
                exact = torch.where(error == unedited_error, exact, value)
            value = exact.detach() + (value - value.detach())
        if not sites_later(sae):
            del self.reads[site]
        return value.to(y.dtype)  # an SAE may be of a wider type than its model

    def latents(self, *, edited: bool) -> dict[str, Tensor]:
        """Those that were read so far and are still written, by the site of their SAE."""
        return {s: read.latents if edited else read.unedited for s, read in self.reads.items()}

    def edits(self, site: str, part: str) -> list[AbstractEdit]:
        """Those of a site's "value", its SAE's "latents", or its "error"."""
        return [
            edit
            for edit in self.plan.edits
            if edit.at == site
            and part == (edit.part or ("value" if edit.latents is None else "latents"))
        ]

    def edited(self, edits: Sequence[AbstractEdit], value: Tensor) -> Tensor:
        """A value after some edits."""
        return apply_edits(edits, value, self.batch.positions, self.batch.mask)

    def keep(self, where: dict[str, Tensor], site: str, value: Tensor) -> None:
        """Record a tensor, on the device that was asked for."""
        device = self.plan.record_device
        where[site] = value if device is None else value.to(device)
