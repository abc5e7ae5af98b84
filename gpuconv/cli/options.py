"""What options take, and what they say of anything else."""

import argparse
import math
from collections.abc import Callable
from typing import Any


def converter(convert: Callable[[str], Any], suits: Callable[[Any], bool], must: str) -> Callable[[str], Any]:
    """Return a converter for argparse that says what an option must be."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {must}, not {text!r}") from None
        if not suits(value):
            raise argparse.ArgumentTypeError(f"must be {must}, not {text!r}")
        return value

    return parse


path = converter(str, bool, "a name or a path")
count = converter(int, lambda value: value >= 1, "an integer of at least 1")
count_or_zero = converter(int, lambda value: value >= 0, "an integer of at least 0")
positive = converter(float, lambda value: 0 < value < math.inf, "a number above 0")
not_negative = converter(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
