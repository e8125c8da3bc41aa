"""Earthquake seismology: surveys of waveforms by sampling rate, station and time."""

from geobatch.earthquake.waveforms import open_rates, open_waveforms, read_window, sampling, write_miniseed

__all__ = ["open_rates", "open_waveforms", "read_window", "sampling", "write_miniseed"]
