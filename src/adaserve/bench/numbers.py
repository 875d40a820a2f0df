"""Types of options that are numbers: what argparse calls to read them, and to say what is wrong with them."""

import argparse
import math


def positive(text: str) -> float:
    """Read a finite positive number; the type of an option."""
    value = _float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def not_negative(text: str) -> float:
    """Read a finite number of at least 0; the type of an option."""
    value = _float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def share(text: str) -> float:
    """Read a number from 0 to 1; the type of an option."""
    value = _float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value


def auto_or_positive(text: str) -> float | None:
    """Read a positive number, or `auto`, which is None; the type of an option."""
    return None if text == "auto" else positive(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None
