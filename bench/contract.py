"""What the host that starts a row and the runner that measures it must both know; importable by either.

Beside it they share the arguments (``host.local.runner_arguments``), the files (``bench.layout``) and what a
result says (``bench.record``).
"""

from __future__ import annotations

OK_EXIT = 0
STATUS_EXIT = 3
"""What the runner exits with when its result.json says another status than ``ok``."""

IMAGE_DIGEST = "FLUXBENCH_IMAGE_DIGEST"
"""Variable: the image that the row runs in."""
MACHINE_ID = "FLUXBENCH_MACHINE_ID"
"""Variable: the machine that the container is on, which has no id of its own or its image's."""
GIT_COMMIT = "FLUXBENCH_GIT_COMMIT"
"""Variable: ``<hash>``, or ``<hash>-dirty``, where code runs without its repository."""
DIRTY = "-dirty"
