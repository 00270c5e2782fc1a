"""The commands of ``fluxbench``, thin: each imports what it needs inside its body."""
