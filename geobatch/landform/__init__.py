"""Landforms: terrain derivatives of elevation rasters."""
