"""`gossamer serve`: the functions over HTTP, and the page."""

import secrets
import socket
from pathlib import Path

import click

from gossamer.cli.options import loaded, model_options
from gossamer.errors import GossamerError


@click.command("serve", short_help="The functions over HTTP, on this machine.")
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8410, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--workspace",
    default="gossamer-workspace",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of labels, jobs and results.",
)
@click.option(
    "--token",
    default=None,
    help="What a request must show; default: none on this machine, a random one elsewhere.",
)
@click.option(
    "--allow-host", "allow_hosts", multiple=True, help="A further name, as a proxy's (repeatable)."
)
@click.option("--device", default=None, help="cpu, cuda, mps; default: cpu.")
def serve_command(  # noqa: PLR0913, PLR0917  click passes options by name
    model_name: str,
    saes_name: str | None,
    host: str,
    port: int,
    workspace: Path,
    token: str | None,
    allow_hosts: tuple[str, ...],
    device: str | None,
) -> None:
    """Serve a model and its SAEs to a browser and to scripts; Ctrl-C ends it. docs/server.md lists
    the routes.

    \b
    Example:
      gossamer serve --port 8410 --workspace runs/workspace
    """
    from gossamer.server.app import create_app, serve
    from gossamer.server.config import LOOPBACK, ServerConfig

    if token is None and host not in LOOPBACK:
        token = secrets.token_urlsafe(24)
    config = ServerConfig(host=host, token=token, allow_hosts=allow_hosts)
    with _listening(host, port) as bound:
        model, saes = loaded(model_name, saes_name, device)
        app = create_app(model, saes, workspace, config)
        shown = f"[{host}]" if ":" in host else host
        query = "" if token is None else f"/?token={token}"
        bound.listen(128)  # whoever reads the line may ask at once
        click.echo(f"Gossamer is at http://{shown}:{bound.getsockname()[1]}{query}")
        serve(app, config, bound)


def _listening(host: str, port: int) -> socket.socket:
    """The socket, bound. GossamerError when the port is taken or the address is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as problem:
        bound.close()
        raise GossamerError(
            f"{host}:{port} cannot be listened at ({problem.strerror or problem}); name another "
            "--port or --host."
        ) from problem
    return bound
