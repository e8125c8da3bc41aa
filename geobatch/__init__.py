"""Distributed GPU batch processing for geoscience: object storage in, scored surveys out."""

__version__ = "0.1.0"
