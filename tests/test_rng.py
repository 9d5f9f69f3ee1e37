"""Philox4x32-10 against the known answers of its authors (Random123, kat_vectors)."""

from __future__ import annotations

import pytest

from curvkern import _cpu

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tuple(_cpu.philox(counter, key)) == expected


def test_philox_is_a_bijection_of_the_counter() -> None:
    blocks = {tuple(_cpu.philox((i, 0, 0, 0), (1, 2))) for i in range(10_000)}
    assert len(blocks) == 10_000
    mean = sum(word for block in blocks for word in block) / (4 * 10_000 * 2**32)
    assert abs(mean - 0.5) < 0.01  # seven standard deviations
