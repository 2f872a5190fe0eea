"""Least squares with coefficients that are never negative, plain and robust."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 30
_RIDGE = 1e-10
_BEND = 0.02  # residuals below it count as squares, above it by their size


def nnls(matrix: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    """argmin |matrix @ x - target| over x >= 0; matrix is float [samples, terms].

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, ch. 23), on
    the normal equations of columns scaled to length 1.
    """
    import numpy as np

    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = matrix / scale
    gram, moment = scaled.T @ scaled, scaled.T @ target
    terms = gram.shape[0]
    gram += _RIDGE * np.eye(terms)  # of terms that the samples cannot tell apart, a mixture
    x = np.zeros(terms)
    passive = np.zeros(terms, dtype=bool)
    tolerance = 1e-12 * max(1.0, float(np.abs(moment).max(initial=0.0)))
    for _ in range(10 * terms + 10):
        gradient = moment - gram @ x
        gradient[passive] = -np.inf
        best = int(gradient.argmax()) if terms else 0
        if passive.all() or gradient[best] <= tolerance:
            break
        passive[best] = True
        while passive.any():
            trial = np.zeros(terms)
            index = np.flatnonzero(passive)
            trial[index] = np.linalg.lstsq(gram[np.ix_(index, index)], moment[index], rcond=None)[0]
            if (trial[index] > 0.0).all():
                x = trial
                break
            # Walk towards the trial until the first coefficient reaches 0, and let go of it.
            wrong = index[trial[index] <= 0.0]
            steps = x[wrong] / np.maximum(x[wrong] - trial[wrong], 1e-300)
            x = x + float(steps.min()) * (trial - x)
            passive[wrong[steps <= steps.min()]] = False
            x[~passive] = 0.0
    result: NDArray[Any] = x / scale
    return result


def robust_nnls(matrix: NDArray[Any], target: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """The same for the relative error of each target, which must be positive: outliers count by
    their size, not its square (iteratively reweighted, as Huber's loss)."""
    import numpy as np

    relative = matrix / target[:, None]
    x = nnls(relative * weights[:, None], weights)
    for _ in range(_ROUNDS):
        error = np.abs(relative @ x - 1.0)
        weight = weights * np.sqrt(_BEND / np.maximum(error, _BEND))
        last, x = x, nnls(relative * weight[:, None], weight)
        if np.allclose(last, x, rtol=1e-6, atol=0.0):
            break
    return x
