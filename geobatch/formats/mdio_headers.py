"""Trace headers as MDIO v1 stores them: an array of records over the places of traces, fields named after SEG-Y rev 1.

Zarr cannot shard an array of records, so each object is one chunk, as MDIO writes it.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.storage
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import UnstableSpecificationWarning

NAME = "headers"
# The fields of trace header bytes 1 to 232 in their order, SEG-Y rev 1; those with a star take four bytes, others two.
_FIELDS = """
trace_seq_num_line* trace_seq_num_reel* orig_field_record_num* trace_num_orig_record* energy_source_point_num*
ensemble_num* trace_num_ensemble* trace_id_code vertically_summed_traces horizontally_stacked_traces data_use
source_to_receiver_distance* receiver_group_elevation* source_surface_elevation* source_depth_below_surface*
receiver_datum_elevation* source_datum_elevation* source_water_depth* receiver_water_depth*
elevation_depth_scalar coordinate_scalar source_coord_x* source_coord_y* group_coord_x* group_coord_y*
coordinate_unit weathering_velocity subweathering_velocity source_uphole_time group_uphole_time
source_static_correction receiver_static_correction total_static_applied lag_time_a lag_time_b
delay_recording_time mute_time_start mute_time_end samples_per_trace sample_interval instrument_gain_type
instrument_gain_const instrument_gain_initial correlated_data sweep_freq_start sweep_freq_end sweep_length
sweep_type sweep_taper_start sweep_taper_end taper_type alias_filter_freq alias_filter_slope notch_filter_freq
notch_filter_slope low_cut_freq high_cut_freq low_cut_slope high_cut_slope year_recorded day_of_year
hour_of_day minute_of_hour second_of_minute time_basis_code trace_weighting_factor group_num_roll_switch
group_num_first_trace group_num_last_trace gap_size taper_overtravel cdp_x* cdp_y* inline* crossline*
shot_point* shot_point_scalar trace_value_unit transduction_const_mantissa* transduction_const_exponent
transduction_unit device_trace_id times_scalar source_type_orientation source_energy_dir_mantissa*
source_energy_dir_exponent source_measurement_mantissa* source_measurement_exponent source_measurement_unit
"""
FIELDS = tuple((word.rstrip("*"), "i4" if word.endswith("*") else "i2") for word in _FIELDS.split())
RECORD = np.dtype([(name, f"<{kind}") for name, kind in FIELDS])


def header_metadata(dims: tuple[str, ...], shape: tuple[int, ...], chunks: tuple[int, ...]) -> dict[str, Any]:
    """The `zarr.json` of the headers over these places."""
    memory = zarr.storage.MemoryStore()
    _create(memory, dims, shape, chunks)
    metadata: dict[str, Any] = json.loads(_stored(memory, f"{NAME}/zarr.json"))
    return metadata


def encode_headers(raw: npt.NDArray[np.uint8], byte_order: str, chunks: tuple[int, ...]) -> bytes:
    """The stored bytes of one chunk of records.

    Args:
        raw: Trace headers as a SEG-Y file has them, `(*places, byte)`; at most a chunk of them.
        byte_order: Of the file: `<` or `>`.
        chunks: Places of a chunk; those beyond `raw` are zero, as places without a trace are.
    """
    own = np.dtype([(name, f"{byte_order}{kind}") for name, kind in FIELDS])
    records = np.ascontiguousarray(raw[..., : own.itemsize]).view(own)[..., 0].astype(RECORD)
    whole = np.zeros(chunks, RECORD)
    whole[tuple(slice(0, n) for n in records.shape)] = records
    memory = zarr.storage.MemoryStore()
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = _create(memory, ("",) * len(chunks), chunks, chunks)
        with _without_warning():
            array[...] = whole
    return _stored(memory, "/".join([NAME, "c", *("0" * len(chunks))]))


def _create(
    memory: zarr.storage.MemoryStore, dims: tuple[str, ...], shape: tuple[int, ...], chunks: tuple[int, ...]
) -> zarr.Array[Any]:
    with _without_warning():
        return zarr.create_array(
            memory,
            name=NAME,
            shape=shape,
            dtype=RECORD,
            chunks=chunks,
            filters=None,
            compressors=ZstdCodec(level=1),
            dimension_names=[dim or None for dim in dims],
            attributes={"coordinates": "cdp_x cdp_y"},
            zarr_format=3,
        )


@contextlib.contextmanager
def _without_warning() -> Iterator[None]:
    """Zarr warns that its specification has no records yet; MDIO stores them all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)
        yield


def _stored(memory: zarr.storage.MemoryStore, key: str) -> bytes:
    buffer = sync(memory.get(key, default_buffer_prototype()))
    if buffer is None:
        raise RuntimeError(f"Zarr stored no object at {key}")
    return buffer.to_bytes()
