"""Makes `volume.zip` beside it from a synthetic survey, with mdio itself.

    python tests/data/mdio/make.py

Needs an environment with multidimio (1.1.3 made what is stored) and segyio; geobatch is not imported.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import segyio
from mdio import segy_to_mdio
from mdio.builder.template_registry import get_template
from segy.standards import get_segy_standard

SHAPE = (4, 5, 12)
MISSING = (2, 3)


def write_segy(path: Path) -> None:
    """Amplitude 100 i + 10 j + k at inline 10 + 2 i, crossline 30 + 3 j, with one trace missing."""
    cells = [cell for cell in np.ndindex(SHAPE[:2]) if cell != MISSING]
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount = 5, np.arange(SHAPE[2]) * 4.0, len(cells)
    with segyio.create(str(path), spec) as file:
        file.bin.update({segyio.BinField.Interval: 4000, segyio.BinField.Format: 5, segyio.BinField.SEGYRevision: 256})
        for trace, (i, j) in enumerate(cells):
            places = {181: 500_000 + 25 * i, 185: 6_000_000 + 12 * j, 189: 10 + 2 * i, 193: 30 + 3 * j}
            file.header[trace] = {**places, 71: 1, 115: SHAPE[2], 117: 4000}
            file.trace[trace] = (100 * i + 10 * j + np.arange(SHAPE[2])).astype(np.float32)


def main() -> None:
    """Write it."""
    with tempfile.TemporaryDirectory() as folder:
        write_segy(Path(folder) / "a.sgy")
        target = Path(folder) / "volume"
        segy_to_mdio(get_segy_standard(1.0), get_template("PostStack3DTime"), f"{folder}/a.sgy", str(target))
        with zipfile.ZipFile(Path(__file__).with_name("volume.zip"), "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(target.rglob("*")):
                if path.is_file() and "headers" not in path.relative_to(target).parts:
                    packed.write(path, path.relative_to(target))


if __name__ == "__main__":
    main()
