"""fluxbench: a laboratory for FLUX inference optimisations."""
