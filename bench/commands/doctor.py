"""``doctor``: is this machine ready to measure?"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Where results would be written.",
)
def doctor(results: Path) -> None:
    """Look at driver, container toolkit, images, disks, weights, GPU links, and what was left behind.

    Changes nothing. Each finding says what to do. Exits 1 when something would make rows fail or their
    numbers untrue.
    """
    from bench.host.doctor import Level, examine
    from bench.host.facts import gather

    findings = examine(gather(results, os.environ))
    for finding in findings:
        click.echo(f"{finding.level:<8} {finding.what}")
        if finding.do:
            click.echo(f"{'':<8} -> {finding.do}")
    sys.exit(any(finding.level is Level.PROBLEM for finding in findings))
