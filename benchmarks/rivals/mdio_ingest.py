"""MDIO's SEG-Y import on a local disk. Environment: `mdio` of `setup.sh`.

Chunks of 128³ as its template has them, packed as MDIO packs them or, with `codec: geobatch`, as geobatch does. MDIO
keeps no shards, no raw headers by default and no checksums; the clock runs over the whole call, in which it starts its
own worker processes.
"""

import functools
import json
import sys
import time
from pathlib import Path

import mdio.builder.templates.base
from mdio import segy_to_mdio
from mdio.builder.schemas.compressors import Blosc
from mdio.builder.template_registry import get_template
from segy.standards import get_segy_standard


def main() -> None:
    """Time one import."""
    order = json.loads(Path(sys.argv[1]).read_text())
    if order["codec"] == "geobatch":
        packed = functools.partial(Blosc, clevel=5, shuffle="bitshuffle")
        mdio.builder.templates.base.compressors.Blosc = lambda cname: packed(cname="lz4")
    start = time.perf_counter()
    segy_to_mdio(get_segy_standard(1.0), get_template("PostStack3DTime"), order["source"], order["output"])
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
