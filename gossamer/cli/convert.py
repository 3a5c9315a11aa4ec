"""`gossamer convert`: SAEs in another library's format, or another's in ours."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gossamer.errors import DiskError, FormatError

if TYPE_CHECKING:
    from gossamer.saes.sae import SAE

FORMATS = ("sae-lens", "gossamer")
"""What can be written."""


@click.command("convert", short_help="Write SAEs in another format.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "wanted", type=click.Choice(FORMATS), required=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert_command(source: Path, wanted: str, out: Path, as_json: bool) -> None:
    """Write the SAE in SOURCE, or each of a directory of them under its folder's name, to OUT; the
    format of SOURCE is detected. Nothing there is overwritten, and all are written or none.

    SAELens has no TopK transcoder, no skip transcoder but that without a selection of its own, and
    no TopK that keeps negative latents: converting one of these to sae-lens is an error.

    \b
    Example:
      gossamer convert runs/r2 --to sae-lens out/
    """
    from gossamer.library import load_sae, sae_directories

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f"{out} is there already and not empty; name a new directory.")
    members = sae_directories(source, strict=True)
    single = len(members) == 1 and members[0] == source
    found = {"." if single else member.name: load_sae(member) for member in members}
    _write_all(found, wanted, out)
    written = [
        {"directory": str(out / name), "site_in": sae.site_in, "site_out": sae.site_out}
        for name, sae in found.items()
    ]
    if as_json:
        click.echo(json.dumps({"format": wanted, "saes": written}, indent=1))
    else:
        for each in written:
            click.echo(f"{each['site_out']} in {each['directory']}, as {wanted}")


def _write_all(found: "dict[str, SAE]", wanted: str, out: Path) -> None:
    """Beside `out`, then moved into its place in one move."""
    from gossamer.interop.sae_lens import write_sae_lens

    fresh = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        for name, sae in found.items():
            if wanted == "sae-lens":
                write_sae_lens(sae, fresh / name)
            else:
                sae.save(fresh / name)
        if out.is_dir():
            out.rmdir()  # empty, as was seen
        fresh.rename(out)
    except DiskError as problem:
        raise DiskError(f"{problem} Nothing was converted.") from problem
    except OSError as problem:
        raise DiskError(f"{out} could not be written ({problem}); name another.") from problem
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
