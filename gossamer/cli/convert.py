"""`gossamer convert`: SAEs in another library's format, or another's in ours."""

import json
from pathlib import Path

import click

from gossamer.errors import FormatError, GossamerError

FORMATS = ("sae-lens", "gossamer")
"""What can be written."""


@click.command("convert", short_help="Write SAEs in another format.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "wanted", type=click.Choice(FORMATS), required=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def convert_command(source: Path, wanted: str, out: Path, as_json: bool) -> None:
    """Write the SAE in SOURCE, or each of a directory of them, to OUT; the format of SOURCE is
    detected. Nothing there is overwritten.

    \b
    Example:
      gossamer convert runs/r2 --to sae-lens out/
    """
    from gossamer.interop.sae_lens import is_sae_lens, write_sae_lens
    from gossamer.library import load_sae, load_saes
    from gossamer.saes.files import is_native
    from gossamer.saes.sae import SAE

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f"{out} is there already and not empty; name a new directory.")
    if is_native(source) or is_sae_lens(source):
        found = {out: load_sae(source)}
    else:
        loaded = load_saes(source)
        found = {out / site: sae for site, sae in loaded.items() if isinstance(sae, SAE)}
    written = []
    for folder, sae in found.items():
        try:
            if wanted == "sae-lens":
                write_sae_lens(sae, folder)
            else:
                sae.save(folder)
        except OSError as problem:
            raise GossamerError(f"{folder} could not be written ({problem}).") from problem
        written.append({"directory": str(folder), "site_in": sae.site_in, "site_out": sae.site_out})
    if as_json:
        click.echo(json.dumps({"format": wanted, "saes": written}, indent=1))
    else:
        for each in written:
            click.echo(f"{each['site_out']} in {each['directory']}, as {wanted}")
