"""IBM System/360 single-precision floats, the sample format of most SEG-Y files.

A word holds a sign bit, a 7-bit exponent of 16 with bias 64, and a 24-bit fraction below the point:
`value = (-1)^sign * fraction / 2^24 * 16^(exponent - 64)` (SEG-Y rev 1, sample format code 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Samples converted at a time: the temporaries stay in the processor's cache, which is worth a factor of two to four.
BLOCK_SAMPLES = 2**15
LARGEST_WORD = 0x7FFFFFFF
# A power of 16 with IBM exponent e is 2^(4 (e - 64) - 24), to which IEEE adds a bias of 127: 4 e - 153, of 1 to 254.
EXPONENT_OF_ZERO = np.int32(153)
LARGEST_EXPONENT = 254

_EXPONENTS = np.arange(128)
_SCALE = np.concatenate([np.ldexp(1.0, 4 * _EXPONENTS - 280), -np.ldexp(1.0, 4 * _EXPONENTS - 280)])


def decode_ibm(words: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The float32 value nearest to each IBM word, in the shape of `words` (uint32 of either byte order).

    A normalised word between 1.2e-38 and 3.4e38 in magnitude is exact, since float32 also holds 24 bits. IBM reaches
    from 5.4e-79 to 7.2e75: what float32 cannot hold becomes infinite, or is rounded towards zero's subnormals.
    """
    flat = words.reshape(-1)
    out = np.empty(flat.size, np.float32)
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, flat.size, BLOCK_SAMPLES):
            _decode_block(flat[start : start + BLOCK_SAMPLES].astype(np.uint32), out[start : start + BLOCK_SAMPLES])
    return out.reshape(words.shape)


def _decode_block(word: npt.NDArray[np.uint32], out: npt.NDArray[np.float32]) -> None:
    """Fraction times power of 16, made by its bits: both are exact as float32, so that only the product is rounded."""
    fraction = word & np.uint32(0xFFFFFF)
    exponent = ((word >> np.uint32(22)) & np.uint32(0x1FC)).view(np.int32)
    exponent -= EXPONENT_OF_ZERO
    if exponent.min() < 1 or exponent.max() > LARGEST_EXPONENT:
        inside = np.clip(exponent, 1, LARGEST_EXPONENT)
        if (fraction[inside != exponent] != 0).any():
            out[:] = fraction * _SCALE[word >> np.uint32(24)]
            return
        exponent = inside
    exponent <<= np.int32(23)
    np.multiply(fraction.view(np.int32).astype(np.float32), exponent.view(np.float32), out=out)
    bits = out.view(np.uint32)
    bits |= word & np.uint32(0x80000000)


def encode_ibm(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The normalised IBM word nearest to each float32, as native uint32 in the shape of `values`.

    Decoding gives the same float32 again for every value that came from an IBM word inside float32's range, because
    such a value has its lowest bits free; others lose up to three bits. IBM has neither NaN nor infinity: NaN becomes
    zero and infinity the largest word.
    """
    flat = values.reshape(-1)
    out = np.empty(flat.size, np.uint32)
    for start in range(0, flat.size, BLOCK_SAMPLES):
        out[start : start + BLOCK_SAMPLES] = _encode_block(flat[start : start + BLOCK_SAMPLES])
    return out.reshape(values.shape)


def _encode_block(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    finite = np.where(np.isfinite(values), values, np.float32(0)).astype(np.float64)
    mantissa, exponent = np.frexp(np.abs(finite))
    power = -(-exponent // 4)
    fraction = np.rint(np.ldexp(mantissa, 24 + exponent - 4 * power)).astype(np.uint32)
    carried = fraction == 1 << 24
    fraction[carried] >>= np.uint32(4)
    power = power + carried
    word = np.where(fraction == 0, 0, (power + 64).astype(np.uint32) << np.uint32(24)) | fraction
    word = np.where(np.isinf(values), LARGEST_WORD, word).astype(np.uint32)
    signed: npt.NDArray[np.uint32] = word | (np.signbit(values).astype(np.uint32) << np.uint32(31))
    return signed
