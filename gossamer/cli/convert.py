"""`gossamer convert`: SAEs in another library's format, or another's in ours."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gossamer.errors import DiskError, FormatError

if TYPE_CHECKING:
    from gossamer.saes import SAE, Crosscoder

FORMATS = (
    *("gossamer", "sae-lens", "sparsify", "dictionary-learning", "openai", "gemma-scope"),
    *("gemma-scope-2", "llama-scope", "circuit-tracer", "circuit-tracer-clt", "jacobian-pair"),
)
"""What can be written."""


@click.command("convert", short_help="Write SAEs in another format.")
@click.argument("source")
@click.option("--to", "wanted", type=click.Choice(FORMATS), required=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert_command(source: str, wanted: str, out: Path, as_json: bool) -> None:
    """Write the SAE in SOURCE, or each of a directory of them under its folder's name, to OUT; the
    format of SOURCE is detected, and it can be a release or a hub id. Nothing in OUT is
    overwritten, and all are written or none.

    A format that cannot say what an SAE does is an error that says why. circuit-tracer,
    circuit-tracer-clt (cross-layer transcoders) and jacobian-pair keep several SAEs in one
    directory: all of SOURCE go into OUT itself.

    \b
    Examples:
      gossamer convert runs/r2 --to sae-lens out/
      gossamer convert gpt2-small-res-jb/blocks.8.hook_resid_pre --to gossamer out/
    """
    from gossamer.library import saes_in

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f"{out} is there already and not empty; name a new directory.")
    found = _write_all(saes_in(source, strict=True), wanted, out)
    written = [(place, _one(sae)) for place, sae in found]
    if as_json:
        rows = [
            {"directory": str(place), "site_in": sae.site_in, "site_out": sae.site_out}
            for place, sae in written
        ]
        click.echo(json.dumps({"format": wanted, "saes": rows}, indent=1))
    else:
        for place, sae in written:
            click.echo(f"{sae.site_out} in {place}, as {wanted}")


def _one(sae: "SAE | Crosscoder") -> "SAE":
    """Itself, or a crosscoder with its sites side by side."""
    from gossamer.saes import Crosscoder

    return sae.joint if isinstance(sae, Crosscoder) else sae


def _write_all(
    found: "Mapping[str, list[SAE | Crosscoder]]", wanted: str, out: Path
) -> "list[tuple[Path, SAE | Crosscoder]]":
    """Beside `out`, then moved into its place in one move: where each SAE is."""
    from gossamer.interop.formats import format_called

    form = format_called(wanted)
    fresh = out.parent / f".{out.name}.{os.getpid()}.partial"
    folders = _folders(found)
    plain = _of_one_site(folders, wanted)
    try:
        if wanted == "gossamer":
            for name, sae in folders:
                sae.save(fresh / name)
        elif form.write_together is not None:
            form.write_together([sae for _, sae in plain], fresh)
            folders = [(".", sae) for _, sae in folders]
        elif form.write is not None:
            for name, sae in plain:
                form.write(sae, fresh / name)
        if out.is_dir():
            out.rmdir()  # empty, as was seen
        fresh.rename(out)
    except DiskError as problem:
        raise DiskError(f"{problem} Nothing was converted.") from problem
    except OSError as problem:
        raise DiskError(f"{out} could not be written ({problem}); name another.") from problem
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return [(out / name, sae) for name, sae in folders]


def _of_one_site(
    folders: "list[tuple[str, SAE | Crosscoder]]", wanted: str
) -> "list[tuple[str, SAE]]":
    """Those that are no crosscoders. FormatError when there are such in a format that has no room
    for them."""
    from gossamer.saes import SAE

    plain = [(name, sae) for name, sae in folders if isinstance(sae, SAE)]
    if wanted != "gossamer" and len(plain) < len(folders):
        several = next(sae for _, sae in folders if not isinstance(sae, SAE))
        raise FormatError(
            f"There is a crosscoder, which writes {', '.join(several.writes)}, and {wanted} keeps "
            "SAEs of one site. Write it with --to gossamer."
        )
    return plain


def _folders(
    found: "Mapping[str, list[SAE | Crosscoder]]",
) -> "list[tuple[str, SAE | Crosscoder]]":
    """The folder of each SAE: its own one's name, and where that held several also its site."""
    folders: list[tuple[str, SAE | Crosscoder]] = []
    for place, saes in found.items():
        name = place.replace("/", "_")
        for sae in saes:
            inner = name if name != "." else ""
            several = f"{inner}_{_one(sae).site_out}".lstrip("_")
            folders.append((several if len(saes) > 1 else name, sae))
    return folders
