"""Distributed GPU batch processing for geoscience: object storage in, scored surveys out."""
