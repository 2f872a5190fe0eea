"""Types of arguments that scripts share."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """How many of something: without one there is nothing to measure."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"has to be at least 1, not {number}")
    return number
