"""The ``fluxbench`` command. Thin: every command imports what it needs inside its body,
so that ``fluxbench --help`` stays under 0.3 s and the host side never imports torch."""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fluxbench")
def main() -> None:
    """Run a matrix of FLUX inference optimisations and find the fastest stack you can defend."""
