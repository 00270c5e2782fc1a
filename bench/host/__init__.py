"""The host side: which rows run here, in what order, in which process, and what became of them.

Nothing in this package imports torch; it works where only the runner's image has it.
"""
