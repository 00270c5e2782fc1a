"""``python -m bench``: the same commands as ``fluxbench``."""

from bench.cli import main

main(prog_name="fluxbench")
