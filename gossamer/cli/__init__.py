"""The command line: one command per verb, one file per command, with the words of the functions.

Every command prints a table for people, or JSON for machines with --json. A user's mistake is one
line on standard error and exit status 2.
"""

import os
import sys

import click

from gossamer.cli.analyze import analyze_command
from gossamer.cli.attribute import attribute_command
from gossamer.cli.bench import bench_command
from gossamer.cli.convert import convert_command
from gossamer.cli.dashboard import dashboard_command
from gossamer.cli.edges import edges_command
from gossamer.cli.edges_over import edges_over_command
from gossamer.cli.evaluate import evaluate_command
from gossamer.cli.generate import generate_command
from gossamer.cli.harvest import harvest_command
from gossamer.cli.jacobian import jacobian_command
from gossamer.cli.launched import let_first_speak
from gossamer.cli.plan import plan_command
from gossamer.cli.serve import serve_command
from gossamer.cli.train import train_command
from gossamer.errors import GossamerError


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="gossamer", prog_name="gossamer")
def cli() -> None:
    """Find, measure and verify sparse circuits in language models."""


for _command in (
    *(
        edges_command,
        edges_over_command,
        attribute_command,
        jacobian_command,
        analyze_command,
        generate_command,
        harvest_command,
        plan_command,
        train_command,
        evaluate_command,
        dashboard_command,
    ),
    *(serve_command, convert_command, bench_command),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():  # progress bars are for people
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        cli(standalone_mode=False)
    except GossamerError as mistake:
        click.echo(f"Error: {mistake}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as mistake:
        mistake.show()
        sys.exit(2)
    except click.ClickException as mistake:
        let_first_speak()
        click.echo(f"Error: {mistake.format_message()}", err=True)
        sys.exit(2)
    except click.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
