"""How an index scores, told by what it says of its own entries. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# Cosines that are nearer than this to each other tell nothing about that.
_SPREAD: Final = 1e-3


def cosine_of(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def rising_line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope and start of the line through points of cosines and scores, which rises."""
    if not points:
        return 1.0, 0.0
    middle = math.fsum(cosine for cosine, _ in points) / len(points)
    height = math.fsum(score for _, score in points) / len(points)
    slope = 1.0
    if max(cosine for cosine, _ in points) - min(cosine for cosine, _ in points) > _SPREAD:
        rise = math.fsum((cosine - middle) * (score - height) for cosine, score in points)
        slope = rise / math.fsum((cosine - middle) ** 2 for cosine, _ in points)
    elif middle < 1 - _SPREAD and height < 1:
        slope = (1 - height) / (1 - middle)  # what is the same scores 1
    if slope <= 0:
        slope = 1.0
    return slope, height - slope * middle
