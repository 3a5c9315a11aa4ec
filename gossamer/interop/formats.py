"""The formats that SAEs are read from and written in, detected by what is in the files.

A format is a module with four names; a new one is a module and a line in `FORMATS`:

    NAME                      its name, for `gossamer convert --to NAME`
    is_here(path)             whether a directory or file is of this format, without reading tensors
    read(path, site)          the SAEs in it; site, or (site read, site written), overrides the file
    write(sae, directory)     write one; None where a format is only read
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.interop import (
    clt,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    jacobian_pairs,
    llama_scope,
    openai,
    sparsify,
    transcoder_sets,
)
from gossamer.interop.room import Sites
from gossamer.interop.sae_lens import is_sae_lens, read_sae_lens, write_sae_lens
from gossamer.saes.crosscoder import Crosscoder
from gossamer.saes.files import is_native, load_native
from gossamer.saes.sae import SAE
from gossamer.sites import parse_site


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to store SAEs."""

    name: str
    """Its name, as `gossamer convert --to` takes it."""

    files: tuple[str, ...]
    """The files of one SAE, or of one set, relative to its directory; `*` for any characters."""

    also: tuple[str, ...] = ()
    """Files that may stand beside them."""

    is_here: Callable[[str | Path], bool]
    """Whether a directory or a file is of this format."""

    read: Callable[[str | Path, Sites], list[SAE]]
    """The SAEs in it."""

    write: Callable[[SAE, str | Path], None] | None
    """Write one SAE into a directory; None where it is only read."""

    write_together: Callable[[list[SAE], str | Path], None] | None = None
    """Write several into one directory, where the format keeps them together."""


def _read_native(path: str | Path, site: Sites = None) -> list[SAE]:
    sae = load_native(path)
    if site is None:
        return [sae]
    if isinstance(site, str) and sae.is_transcoder:
        raise SiteError(
            f"{path} is a transcoder from {sae.site_in} to {sae.site_out}, so one site cannot "
            "stand for both. Give a pair (site_in, site_out), or leave site= out."
        )
    site_in, site_out = (site, site) if isinstance(site, str) else site
    return [SAE(**{**sae.arguments(), "site_in": site_in, "site_out": site_out})]


def _write_native(sae: SAE, directory: str | Path) -> None:
    sae.save(directory)


def _read_sae_lens(path: str | Path, site: Sites = None) -> list[SAE]:
    return [read_sae_lens(path, site=site)]


def _write_pair(saes: list[SAE], directory: str | Path) -> None:
    if len(saes) != 2:
        raise FormatError(
            f"A Jacobian pair is two SAEs, of an MLP's input and of its output, got {len(saes)}; "
            "give a directory of such two."
        )
    first, second = sorted(saes, key=lambda sae: parse_site(sae.site_out).order)
    jacobian_pairs.write_pair(first, second, directory)


def _of(
    module: Any,
    *files: str,
    also: tuple[str, ...] = (),
    together: Callable[[list[SAE], str | Path], None] | None = None,
) -> Format:
    """A format from its module's four names."""
    return Format(
        name=module.NAME,
        files=files,
        also=(*also, "labels.json.gz"),
        is_here=module.is_here,
        read=module.read,
        write=module.write,
        write_together=together,
    )


NATIVE = Format(
    name="gossamer",
    files=("sae.json", "sae.safetensors"),
    also=("labels.json.gz",),
    is_here=is_native,
    read=_read_native,
    write=_write_native,
)

SAE_LENS = Format(
    name="sae-lens",
    files=("cfg.json", "sae_weights.safetensors"),
    also=("activation_scaler.json", "labels.json.gz"),
    is_here=is_sae_lens,
    read=_read_sae_lens,
    write=write_sae_lens,
)

FORMATS: tuple[Format, ...] = (
    NATIVE,
    _of(
        jacobian_pairs, *SAE_LENS.files, together=_write_pair
    ),  # before SAELens, whose files it has
    SAE_LENS,
    _of(sparsify, "cfg.json", "sae.safetensors"),
    _of(dictionary_learning, "ae.pt", "config.json"),
    _of(openai, "*.pt"),
    _of(gemma_scope, "params.npz", also=("config.json",)),
    _of(gemma_scope_2, "params.safetensors", also=("config.json",)),
    _of(llama_scope, "hyperparams.json", "checkpoints/final.safetensors"),
    _of(
        clt,
        "W_enc_*.safetensors",
        "W_dec_*.safetensors",
        also=("config.yaml",),
        together=clt.write_set,
    ),
    _of(
        transcoder_sets,
        "layer_*.safetensors",
        also=("config.yaml",),
        together=transcoder_sets.write_set,
    ),
)
"""Every format, in the order in which they are looked for."""


def format_at(path: str | Path) -> Format | None:
    """The format of a directory or file; None when it holds no SAE."""
    return next((form for form in FORMATS if form.is_here(path)), None)


def format_called(name: str) -> Format:
    """The format of that name. GossamerError when there is none."""
    found = [form for form in FORMATS if form.name == name]
    if not found:
        known = ", ".join(form.name for form in FORMATS)
        raise GossamerError(f'No format "{name}"; write one of {known}.')
    return found[0]


def known_format(path: str | Path) -> Format:
    """The format of a directory or file. FormatError that lists what is known when it has none."""
    form = format_at(path)
    if form is not None:
        return form
    path = Path(path)
    here = sorted(file.name for file in path.iterdir())[:6] if path.is_dir() else [path.name]
    known = ", ".join(f"{' + '.join(form.files)} ({form.name})" for form in FORMATS)
    raise FormatError(
        f"{path} holds no SAE: found {', '.join(here) or 'nothing'}. Known are {known}."
    )


def only(saes: list[SAE | Crosscoder], where: str | Path) -> SAE | Crosscoder:
    """The one SAE of a list. FormatError that names the sites when there are several."""
    if len(saes) == 1:
        return saes[0]
    written = ", ".join(sae.site_out for sae in saes if isinstance(sae, SAE))
    raise FormatError(
        f"{where} holds {len(saes)} SAEs, which write {written}; name one with site=, or take all "
        "with load_saes."
    )
