"""Which elements dropout keeps: a seed's draws, in NumPy.

Chris Doty-Humphrey's generator sfc32 of PractRand, one for each of 16 lanes of each
block of 4096 elements, seeded by Sebastiano Vigna's splitmix64. A draw of 32 bits
decides on two elements. ``cpp_kernels.cpp`` draws the same numbers.
"""

import numpy as np

BLOCK = 4096
LANES = 16
WARM_UP = 12
GOLDEN = 0x9E3779B97F4A7C15
BETWEEN_BLOCKS = 0xD1342543DE82EF95


def kept_elements(count, seed, zeroed):
    """Draw which elements stay.

    Arguments
    ---------
    count : int
        Elements.
    seed : int
        In [0, 2^64).
    zeroed : int
        In [0, 65536]: an element is dropped with probability zeroed / 65536.

    Returns
    -------
    numpy.ndarray
        (count,) bool.

    Example
    -------
    >>> kept_elements(8, seed=1, zeroed=32768).tolist()
    [True, False, True, True, False, False, True, True]
    """
    blocks = -(-count // BLOCK)
    generator = _Sfc32(seed, blocks)
    kept = np.empty((blocks, BLOCK // (2 * LANES), 2, LANES), dtype=bool)
    for group in range(kept.shape[1]):
        draws = generator.draw()
        kept[:, group, 0] = (draws & 0xFFFF) >= zeroed
        kept[:, group, 1] = (draws >> 16) >= zeroed
    return kept.reshape(-1)[:count]


class _Sfc32:
    """All lanes of all blocks, side by side."""

    def __init__(self, seed, blocks):
        with np.errstate(over="ignore"):
            block = np.arange(blocks, dtype=np.uint64) * np.uint64(BETWEEN_BLOCKS)
            state = _mixed(np.uint64(seed) ^ block, 1)[:, None]
            steps = 2 * np.arange(LANES, dtype=np.uint64) + np.uint64(1)
            first, second = _mixed(state, steps), _mixed(state, steps + np.uint64(1))
        self.a = first.astype(np.uint32)
        self.b = (first >> np.uint64(32)).astype(np.uint32)
        self.c = second.astype(np.uint32)
        self.counter = np.uint32(1)
        for _ in range(WARM_UP):
            self.draw()

    def draw(self):
        """(blocks, lanes) uint32."""
        result = self.a + self.b + self.counter
        self.counter += np.uint32(1)
        self.a = self.b ^ (self.b >> np.uint32(9))
        self.b = self.c + (self.c << np.uint32(3))
        self.c = ((self.c << np.uint32(21)) | (self.c >> np.uint32(11))) + result
        return result


def _mixed(state, steps):
    """Output number ``steps`` of splitmix64 that starts at ``state``."""
    z = state + np.asarray(steps, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
