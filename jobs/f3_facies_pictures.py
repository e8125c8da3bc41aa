"""The published pictures of F3 crosslines and their facies as arrays that `geobatch run jobs/ingest_f3_*.yaml` reads.

    python jobs/f3_facies_pictures.py FOLDER f3.npz

FOLDER holds `images/N_.png`, grey, and `masks/N_.png`, one colour per facies, 512 x 512 with samples downwards and
inlines to the right (CC BY 4.0; facies after Alaudah et al. 2019, doi:10.1190/INT-2018-0249.1). The archive holds
`amplitude` and `facies` (crossline, sample, inline), the facies from 0, 255 where none is given, and the numbers of the
`crossline`s. How far apart the pixels of a picture are is not published: lines and samples are counted.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import rasterio

FACIES_RED = 20
"""The mask of facies i, from 1, is (20 i, 50 + 20 i, 255 - 10 i)."""


def crossline(name: str) -> int:
    """The number of the crossline of a picture: those above the 250th are counted from 300."""
    number = int(name.partition("_")[0]) - 1001
    return 1000 + number if number <= 250 else 300 + number - 251


def main(folder: str, target: str) -> None:
    """Write the archive."""
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    images = sorted(Path(folder, "images").glob("*.png"), key=lambda path: crossline(path.name))
    amplitude, facies = [], []
    for image in images:
        with rasterio.open(image) as grey, rasterio.open(Path(folder, "masks", image.name)) as mask:
            amplitude.append(grey.read(1).astype(np.int16) - 128)
            red = mask.read(1)
        facies.append(np.where(red > 0, red // FACIES_RED - 1, 255).astype(np.uint8))
    np.savez_compressed(
        target,
        amplitude=np.stack(amplitude).astype(np.float32),
        facies=np.stack(facies),
        crossline=np.array([crossline(image.name) for image in images], np.int32),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
