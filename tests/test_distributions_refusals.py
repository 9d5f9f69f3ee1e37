"""What the laws on the sphere refuse, and the words they refuse it in."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

from curvkern.distributions import (
    HypersphericalUniform,
    VonMisesFisher,
    fit_concentration,
)
from spherical import directions, law

POINT = directions(3)
UNIFORM = HypersphericalUniform(3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: VonMisesFisher(2 * POINT, 1.0), ValueError, "loc"),
        (lambda: VonMisesFisher(POINT * math.nan, 1.0), ValueError, "loc"),
        (lambda: VonMisesFisher(POINT, -1.0), ValueError, "concentration"),
        (lambda: VonMisesFisher(POINT, math.nan), ValueError, "concentration"),
        (lambda: VonMisesFisher(POINT, math.inf), ValueError, "concentration"),
        (lambda: VonMisesFisher(POINT[:1], 1.0), ValueError, r"loc .* d >= 2, got \(1,\)"),
        (
            lambda: VonMisesFisher(POINT.expand(2, 3), torch.ones(4)),
            ValueError,
            r"\(2,\) .* \(4,\)",
        ),
        (lambda: VonMisesFisher(torch.tensor([1, 0]), 1.0), TypeError, "loc .*torch.int64"),
        (
            lambda: VonMisesFisher(POINT.to(torch.complex128), 1.0),
            TypeError,
            "loc .*complex128",
        ),
        (lambda: VonMisesFisher(POINT, True), TypeError, "concentration .* bool"),
        (lambda: VonMisesFisher(None, 1.0), TypeError, "loc .* NoneType"),
        (
            lambda: VonMisesFisher(2 * POINT, 1.0),
            ValueError,
            "unit vectors, .* norm 2;",
        ),
        (lambda: VonMisesFisher(POINT, "2"), TypeError, "a tensor or a real number, got str"),
        (lambda: VonMisesFisher(POINT, None), TypeError, "or a real number, got NoneType"),
        (lambda: VonMisesFisher(POINT, torch.tensor(True)), TypeError, "concentration .*bool"),
        (lambda: VonMisesFisher(POINT, 10**400), ValueError, "concentration .* range of float"),
        (lambda: VonMisesFisher(POINT.to_sparse(), 1.0), TypeError, "loc has layout .*sparse"),
        (lambda: law(3, 1.0).log_prob(2 * POINT), ValueError, "log_prob: value .* norm 2; "),
        (lambda: law(3, 1.0).log_prob(POINT[:2]), ValueError, r"value .*\(2,\) .* \(3,\)"),
        (lambda: law(3, 1.0).log_prob([1.0, 0, 0]), TypeError, "value .* list"),
        (
            lambda: law(3, 1.0).expand((2,)).log_prob(POINT.expand(5, 3)),
            ValueError,
            r"\(5, 3\)",
        ),
        (lambda: UNIFORM.log_prob(torch.tensor([1, 0, 0])), TypeError, "value .*int64"),
        (lambda: UNIFORM.log_prob(2 * POINT), ValueError, "value must hold unit .* norm 2"),
        (lambda: law(3, [1.0, 2.0]).expand((3, 4)), ValueError, r"expand: .*\(3, 4\).*\(2,\)"),
        (lambda: law(3, 1.0).expand(5), TypeError, "batch_shape must be a sequence .* got 5"),
        (lambda: law(3, [1.0, 2.0]).expand((4, -1)), ValueError, "batch_shape .*non-negative"),
        (lambda: UNIFORM.expand((2,)).expand((3,)), ValueError, r"expand: .*\(3,\).*\(2,\)"),
        (lambda: HypersphericalUniform(3, 5), TypeError, "batch_shape .* got 5"),
        (lambda: law(3, 1.0).sample((-1,)), ValueError, r"sample_shape .* got \(-1,\)"),
        (lambda: law(3, 1.0).sample(5), TypeError, "sample_shape must be a sequence .* got 5"),
        (lambda: law(3, 1.0).sample((2**70,)), ValueError, "sample_shape is too large"),
        (lambda: law(3, 1.0).sample((2**40,)), MemoryError, "1099511627776.* too large"),
        (lambda: law(3, 1.0).sample((2**62, 2**10)), MemoryError, "1024, 3.* too large"),
        (lambda: UNIFORM.sample((2**40,)), MemoryError, "1099511627776.* too large"),
        (lambda: UNIFORM.sample((-1,)), ValueError, r"sample_shape .* got \(-1,\)"),
        (
            lambda: VonMisesFisher(POINT.to("meta"), 1.0).sample(),
            NotImplementedError,
            "meta device",
        ),
        (
            lambda: kl_divergence(law(3, [[1.0] * 4] * 2), law(3, [1.0] * 3)),
            ValueError,
            r"kl_divergence: .*\(2, 4\) and \(3,\)",
        ),
        (
            lambda: kl_divergence(UNIFORM.expand((2, 4)), law(3, [1.0] * 3)),
            ValueError,
            r"kl_divergence: .*\(2, 4\) and \(3,\)",
        ),
        (lambda: HypersphericalUniform(1), ValueError, "dim .* at least 2, got 1"),
        (lambda: HypersphericalUniform(2.0), TypeError, "dim .* float"),
        (lambda: fit_concentration(0.5, 1), ValueError, "dim .* at least 2, got 1"),
        (lambda: fit_concentration(1.5, 3), ValueError, r"rbar .* \[0, 1\], got 1.5"),
        (lambda: fit_concentration(math.nan, 3), ValueError, "rbar .* got nan"),
        (
            lambda: fit_concentration(torch.tensor([0.1, -0.2]), 3),
            ValueError,
            "rbar .* got -0.2",
        ),
        (lambda: fit_concentration("0.5", 3), TypeError, "rbar .* str"),
        (lambda: fit_concentration(torch.tensor([True]), 3), TypeError, "rbar .*bool"),
        (lambda: VonMisesFisher.fit(torch.empty(0, 3)), ValueError, "x is empty"),
        (lambda: VonMisesFisher.fit(POINT), ValueError, r"x must have shape .* got \(3,\)"),
        (lambda: VonMisesFisher.fit(3 * POINT[None]), ValueError, "x .* norm 3; normalise"),
        (lambda: VonMisesFisher.fit(POINT[None] * math.nan), ValueError, "x .* norm nan"),
        (
            lambda: VonMisesFisher.fit(POINT[None], torch.tensor([-0.5])),
            ValueError,
            "weights must be non-negative, got -0.5",
        ),
        (
            lambda: VonMisesFisher.fit(POINT[None], torch.tensor([math.nan])),
            ValueError,
            "weights .* finite",
        ),
        (
            lambda: VonMisesFisher.fit(POINT[None], torch.zeros(1)),
            ValueError,
            "weights .* positive sum",
        ),
        (
            lambda: VonMisesFisher.fit(POINT[None], torch.ones(2)),
            ValueError,
            r"weights .* \(\.\.\., 1\).*\(2,\)",
        ),
        (lambda: VonMisesFisher.fit(POINT[None], [1.0]), TypeError, "weights .* list"),
        (lambda: kl_divergence(law(3, 1.0), law(4, 1.0)), ValueError, "3 and 4"),
    ],
)
def test_invalid_arguments_are_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()
