"""Charts: each tells its stacks apart, in full, on any paper and for any eye, and agrees with the tables."""

from __future__ import annotations

from bench.report.draw import shortened


def test_coordinates_are_rounded_and_the_numbers_that_people_read_are_not() -> None:
    svg = '<path d="M0.1299,5L10.12345,7"/><text transform="translate(3.14159,2)">0.0742</text>'
    assert shortened(svg) == '<path d="M0.13,5L10.12,7"/><text transform="translate(3.14,2)">0.0742</text>'
