"""In which order the queues are looked at in one turn: as given, or drawn by weight."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence


def normalised(weights: Mapping[str, int]) -> dict[str, int]:
    """The same proportions in the smallest whole numbers."""
    divisor = math.gcd(*weights.values()) or 1
    return {name: weight // divisor for name, weight in weights.items()}


class Draw:
    """Orders the queues anew for each turn. Every turn lists each queue once."""

    def __init__(
        self, weights: Mapping[str, int], *, strict: bool, rand: random.Random | None = None
    ) -> None:
        self._weights = normalised(weights)
        self._fixed: Sequence[str] | None = list(weights) if strict or len(weights) == 1 else None
        self._rand = rand or random.Random()

    def order(self) -> Sequence[str]:
        """The queues in the order of this turn.

        By weight it is a draw without replacement: each place goes to a queue with a chance in
        proportion to its weight among those left (Efraimidis and Spirakis, "Weighted random
        sampling with a reservoir", 2006).
        """
        if self._fixed is not None:
            return self._fixed
        keyed = [(self._rand.random() ** (1 / weight), name) for name, weight in self._weights.items()]
        return [name for _, name in sorted(keyed, reverse=True)]
