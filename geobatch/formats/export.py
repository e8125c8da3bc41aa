"""Surveys as files again, in the format of their kind."""

from __future__ import annotations

from typing import Any

from geobatch.errors import UsageError
from geobatch.survey import open_survey, survey_info


def export_survey(
    src_url: str, dst_url: str, *, variable: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """The summary of the file that a survey is written to.

    A volume, scored or not, gathers and traces become SEG-Y with the headers of their source, or MDIO when the name
    ends in `.mdio`; a raster a COG; a catalogue Parquet, CSV or QuakeML by the suffix.

    Args:
        src_url: The survey.
        dst_url: The file.
        variable: `class_map`, `probability:NAME`, or the survey's own by default.
        overwrite: Replace a file that is there already.

    Raises:
        UsageError: a file is there already, or what was asked for cannot be written.
    """
    kind = survey_info(open_survey(src_url), src_url).get("kind")
    if kind == "catalogue":
        from geobatch.formats.catalogue_export import export_catalogue

        _refuse_variable(variable, str(kind))
        return export_catalogue(src_url, dst_url, overwrite=overwrite)
    from geobatch.formats.cog_export import export_cog, is_raster

    if is_raster(src_url):
        return export_cog(src_url, dst_url, variable=variable, overwrite=overwrite)
    if dst_url.rstrip("/").endswith(".mdio"):
        from geobatch.formats.mdio import export_mdio

        _refuse_variable(variable, "an MDIO group")
        return export_mdio(src_url, dst_url, overwrite=overwrite)
    from geobatch.formats.segy_export import export_segy

    return export_segy(src_url, dst_url, variable=variable, overwrite=overwrite)


def _refuse_variable(variable: str | None, what: str) -> None:
    if variable is not None:
        raise UsageError(f"{what} is written whole", where="--variable", measured=variable)
