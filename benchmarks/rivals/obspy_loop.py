"""obspy's plain loop over day files. Environment: geobatch's own.

`read`: every file is read and dropped. `store`: it is merged too and put into a Zarr array of a row per channel, packed
as geobatch packs counts, which is what ingest does.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import obspy
import zarr
from zarr.codecs import BloscCodec

CHUNK = 65536


def main() -> None:
    """Time one pass."""
    order = json.loads(Path(sys.argv[1]).read_text())
    files = sorted(path for path in Path(order["source"]).rglob("*") if path.is_file())
    start = time.perf_counter()
    if order["codec"] == "read":
        samples = sum(trace.stats.npts for path in files for trace in obspy.read(str(path)))
    else:
        samples = _store(files, order["output"])
    print(json.dumps({"seconds": time.perf_counter() - start, "samples": samples}))


def _store(files: list[Path], output: str) -> int:
    """Two looks at the files, as ingest takes them: where their samples lie, and the samples."""
    headers = [trace for path in files for trace in obspy.read(str(path), headonly=True)]
    channels = sorted({trace.id for trace in headers})
    first = min(trace.stats.starttime for trace in headers)
    rate = headers[0].stats.sampling_rate
    length = max(round((trace.stats.endtime - first) * rate) + 1 for trace in headers)
    packer = BloscCodec(typesize=4, cname="lz4", clevel=5, shuffle="bitshuffle")
    shape, chunks = (len(channels), length), (1, CHUNK)
    missing = int(np.iinfo(np.int32).min)
    array = zarr.create_array(
        output, shape=shape, chunks=chunks, dtype="int32", compressors=[packer], fill_value=missing
    )
    for path in files:
        for trace in obspy.read(str(path)).merge(fill_value=missing):
            begin = round((trace.stats.starttime - first) * rate)
            array[channels.index(trace.id), begin : begin + trace.stats.npts] = trace.data
    return sum(trace.stats.npts for trace in headers)


if __name__ == "__main__":
    main()
