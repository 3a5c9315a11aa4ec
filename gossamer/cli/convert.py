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
    from gossamer.saes.sae import SAE

FORMATS = (
    *("gossamer", "sae-lens", "sparsify", "dictionary-learning", "openai", "gemma-scope"),
    *("gemma-scope-2", "llama-scope", "circuit-tracer", "jacobian-pair"),
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

    A format that cannot say what an SAE does is an error that says why. circuit-tracer and
    jacobian-pair keep several SAEs in one directory: all of SOURCE go into OUT itself.

    \b
    Examples:
      gossamer convert runs/r2 --to sae-lens out/
      gossamer convert gpt2-small-res-jb/blocks.8.hook_resid_pre --to gossamer out/
    """
    from gossamer.library import saes_in

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f"{out} is there already and not empty; name a new directory.")
    written = _write_all(saes_in(source, strict=True), wanted, out)
    if as_json:
        rows = [
            {"directory": str(place), "site_in": sae.site_in, "site_out": sae.site_out}
            for place, sae in written
        ]
        click.echo(json.dumps({"format": wanted, "saes": rows}, indent=1))
    else:
        for place, sae in written:
            click.echo(f"{sae.site_out} in {place}, as {wanted}")


def _write_all(
    found: "Mapping[str, list[SAE]]", wanted: str, out: Path
) -> "list[tuple[Path, SAE]]":
    """Beside `out`, then moved into its place in one move: where each SAE is."""
    from gossamer.interop.formats import format_called

    form = format_called(wanted)
    fresh = out.parent / f".{out.name}.{os.getpid()}.partial"
    folders = _folders(found)
    try:
        if form.write_together is not None:
            form.write_together([sae for _, sae in folders], fresh)
            folders = [(".", sae) for _, sae in folders]
        elif form.write is not None:
            for name, sae in folders:
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


def _folders(found: "Mapping[str, list[SAE]]") -> "list[tuple[str, SAE]]":
    """The folder of each SAE: its own one's name, and where that held several also its site."""
    folders: list[tuple[str, SAE]] = []
    for place, saes in found.items():
        name = place.replace("/", "_")
        for sae in saes:
            inner = name if name != "." else ""
            several = f"{inner}_{sae.site_out}".lstrip("_")
            folders.append((several if len(saes) > 1 else name, sae))
    return folders
