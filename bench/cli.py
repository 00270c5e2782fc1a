"""The ``fluxbench`` command. Its parts, in ``bench/commands/``, import what they need inside their bodies,
so that ``fluxbench --help`` stays under 0.3 s and the host side never imports torch."""

from __future__ import annotations

import errno
from typing import Any

import click

from bench.commands.campaign import bench, demo, fan_out_command, sync
from bench.commands.doctor import doctor
from bench.commands.gguf import gguf
from bench.commands.images import compose, env, fetch, image, lock
from bench.commands.matrix import matrix, rows
from bench.commands.measure import overhead, run
from bench.commands.results import check, quality, report, schema
from bench.commands.tryout import construct, correctness

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
UNUSABLE = FULL | {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
}
"""What a file system says of a place that its user can mend; something else may be there, as a link to
nowhere. Any other OSError is a fault of ours."""


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno in FULL and error.filename is None:  # of a write, not of an open
                place = "the disk that this writes to"
            elif error.errno in UNUSABLE and error.filename is not None:
                place = error.filename
            else:
                raise
            raise click.ClickException(
                f"{place}: {error.strerror}; give it room and permission, or name another place"
            ) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fluxbench")
def main() -> None:
    """Run a matrix of FLUX inference optimisations and find the fastest stack you can defend.

    `rows` shows what can be run, `fan-out --dry-run` what it would take, `doctor` what this machine lacks,
    and `report` what was found. README.md has the rest.
    """


COMMANDS = (
    *(matrix, rows, fan_out_command, bench, sync, demo, run, overhead, quality, check, report, schema),
    *(doctor, lock, env, image, compose, fetch, gguf),
    *(construct, correctness),
)
for command in COMMANDS:
    main.add_command(command)
