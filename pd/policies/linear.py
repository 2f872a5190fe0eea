"""A small linear model that is refined with every measurement. Pure.

Least squares with forgetting: old measurements count less and less, but for those that are held.
Coefficients are never negative, since more work never takes less time, and where measurements
cannot tell features apart (a batch whose size never changes) each is given its part of what they
explain together.
"""

from __future__ import annotations

from collections.abc import Sequence

_RIDGE = 1e-3  # of each feature's mean square: what decides where nothing else does


class OnlineLinear:
    """y = sum of coefficient * feature, from samples that come one by one."""

    __slots__ = (
        "_size", "_keep", "_squares", "_products", "_held_squares", "_held_products",
        "_coefficients", "num_samples",
    )  # fmt: skip

    def __init__(self, num_features: int, memory: float = 200.0) -> None:
        """`memory` is how many samples ago one counts a third of the newest."""
        self._size = num_features
        self._keep = 1.0 - 1.0 / memory
        self._squares = [[0.0] * num_features for _ in range(num_features)]
        self._products = [0.0] * num_features
        self._held_squares = [[0.0] * num_features for _ in range(num_features)]
        self._held_products = [0.0] * num_features
        self._coefficients: tuple[float, ...] | None = None
        self.num_samples = 0

    def add(self, features: Sequence[float], value: float) -> None:
        keep = self._keep
        for i, x in enumerate(features):
            row = self._squares[i]
            for j, other in enumerate(features):
                row[j] = row[j] * keep + x * other
            self._products[i] = self._products[i] * keep + x * value
        self._coefficients = None
        self.num_samples += 1

    def hold(self, features: Sequence[float], value: float, weight: float) -> None:
        """A measurement that is never forgotten, and counts as `weight` new ones do."""
        for i, x in enumerate(features):
            for j, other in enumerate(features):
                self._held_squares[i][j] += weight * x * other
            self._held_products[i] += weight * x * value
        self._coefficients = None
        self.num_samples += 1

    def predict(self, features: Sequence[float]) -> float:
        return sum(c * x for c, x in zip(self.coefficients, features, strict=True))

    @property
    def coefficients(self) -> tuple[float, ...]:
        if self._coefficients is None:
            self._coefficients = self._solve()
        return self._coefficients

    def _solve(self) -> tuple[float, ...]:
        """Leave out, one after another, the features whose coefficient would be negative."""
        squares = [
            [x + held for x, held in zip(*rows)] for rows in zip(self._squares, self._held_squares)
        ]
        products = [x + held for x, held in zip(self._products, self._held_products)]
        used = [i for i in range(self._size) if squares[i][i] > 0.0]
        while used:
            # In units in which every feature's mean square is one.
            scaled = [(i, squares[i][i] ** -0.5) for i in used]
            matrix = [[squares[i][j] * a * b for j, b in scaled] for i, a in scaled]
            for k in range(len(used)):
                matrix[k][k] += _RIDGE
            found = _gauss(matrix, [products[i] * a for i, a in scaled])
            least = min(range(len(used)), key=lambda k: found[k])
            if found[least] >= 0.0:
                values = [0.0] * self._size
                for (i, a), value in zip(scaled, found, strict=True):
                    values[i] = value * a
                return tuple(values)
            del used[least]
        return (0.0,) * self._size


def _gauss(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve a positive definite system of a few unknowns; both arguments are used up."""
    size = len(right)
    for i in range(size):
        for k in range(i + 1, size):
            factor = matrix[k][i] / matrix[i][i]
            for j in range(i, size):
                matrix[k][j] -= factor * matrix[i][j]
            right[k] -= factor * right[i]
    for i in reversed(range(size)):
        known = sum(matrix[i][j] * right[j] for j in range(i + 1, size))
        right[i] = (right[i] - known) / matrix[i][i]
    return right
