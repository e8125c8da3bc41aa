"""`job: label`: interpretations (horizons, fault sticks, polygons, points, classes) painted on the grid of a survey."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geobatch.survey import INVALID_CLASS


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LabelClass(_Frozen):
    """A class and its colour; classes are numbered in the order in which they are given."""

    name: str = Field(min_length=1)
    color: str = Field(default="#808080", pattern="^#[0-9a-fA-F]{6}$")


class HorizonFile(_Frozen):
    """A horizon file and what its columns are.

    Attributes:
        url: Of the file: text, or a `.npy` array `(inline, crossline)`.
        columns: `lines`: inline, crossline, value (or with x and y between); `xyz`: map coordinates and value, brought
            to lines by the survey's bin grid.
        inline: First number and step of the rows of a `.npy` array.
        crossline: First number and step of its columns.
        value: What the values are: ms or m as the survey's axis has them, or the index of a sample.
    """

    url: str
    columns: Literal["lines", "xyz"] = "lines"
    inline: tuple[int, int] | None = None
    crossline: tuple[int, int] | None = None
    value: Literal["axis", "index"] = "axis"


Surface = HorizonFile | str | float


class Everywhere(_Frozen):
    """Every cell."""

    layer: Literal["everywhere"]
    label: str


class Zone(_Frozen):
    """The samples from `top`, included, to `base`, excluded, so that zones below each other share none.

    Attributes:
        top: A horizon, or a time or depth; the top of the survey when not given.
        base: The same; the end of the survey when not given.
    """

    layer: Literal["zone"]
    label: str
    top: Surface | None = None
    base: Surface | None = None


class Reflector(_Frozen):
    """The samples no further than `half_thickness` (ms or m) from a horizon."""

    layer: Literal["horizon"]
    label: str
    horizon: Surface
    half_thickness: Annotated[float, Field(ge=0)] = 0.0


class FaultSticks(_Frozen):
    """Fault surfaces through sticks, as thick as `radius` cells on either side.

    Attributes:
        url: Text: per line x, y, z, the number of the stick and, optionally, the name of the fault; or Charisma's form,
            `INLINE- n XLINE- n x y z fault stick`.
        radius: Cells nearer than this to a surface belong to the fault.
    """

    layer: Literal["fault_sticks"]
    label: str
    url: str
    radius: Annotated[float, Field(ge=0, le=64)] = 1.0


class Polygons(_Frozen):
    """Cells inside polygons on the map.

    Attributes:
        url: GeoPackage, Shapefile, GeoJSON or FlatGeobuf; its CRS is brought to the survey's.
        label: The class of all polygons.
        attribute: The column that tells the class of each, in place of `label`.
        labels: The class by value of that column; values that are not named are left out.
        top: In a volume, from this horizon, time or depth on.
        base: In a volume, up to this one.
    """

    layer: Literal["polygons"]
    url: str
    label: str | None = None
    attribute: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    top: Surface | None = None
    base: Surface | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.label is None) == (self.attribute is None):
            raise ValueError("polygons take `label`, or `attribute` and `labels`")
        return self


class Points(_Frozen):
    """Cells around points of a CSV file.

    Attributes:
        url: CSV with a header.
        x: Column of the easting.
        y: Column of the northing.
        z: Column of the time or depth; in a volume without it, the whole trace.
        label: The class of all points.
        attribute: The column that tells the class of each, in place of `label`.
        labels: The class by value of that column.
        radius: In units of the map: cells nearer than this; 0 is the nearest cell.
        half_thickness: In ms or m: samples nearer than this; 0 is the nearest sample.
    """

    layer: Literal["points"]
    url: str
    x: str = "x"
    y: str = "y"
    z: str | None = None
    label: str | None = None
    attribute: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    radius: Annotated[float, Field(ge=0)] = 0.0
    half_thickness: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.label is None) == (self.attribute is None):
            raise ValueError("points take `label`, or `attribute` and `labels`")
        return self


class ClassRaster(_Frozen):
    """On a raster: cells by the class number of another raster, of any grid and CRS, brought to the survey's.

    Attributes:
        url: GeoTIFF or PNG files (one, a folder, a list), a raster survey or a label survey; one band of whole numbers
            from 0 to 254.
        labels: The class by number; numbers that are not named are left out.
        resampling: `nearest`, or `mode` for the class that covers most of a cell.
    """

    layer: Literal["class_raster"]
    url: str
    labels: dict[Annotated[int, Field(ge=0, lt=INVALID_CLASS)], str] = Field(min_length=1)
    resampling: Literal["nearest", "mode"] = "nearest"


Layer = Annotated[
    Everywhere | Zone | Reflector | FaultSticks | Polygons | Points | ClassRaster, Field(discriminator="layer")
]


class LabelJob(_Frozen):
    """Interpretations into a label survey on the grid of a survey.

    Attributes:
        job: `label`.
        name: Of the job.
        survey: URL of the survey, a volume or a raster.
        output: URL of the labels: `class_map`, 255 where no layer says anything.
        classes: The classes, in the order of their numbers.
        layers: Painted one after the other, a later one over an earlier.
        overwrite: Replace other labels that are complete.
        num_cpus: CPUs of the local Ray cluster when no cluster is joined.
    """

    job: Literal["label"]
    name: str = "label"
    survey: str
    output: str
    classes: tuple[LabelClass, ...] = Field(min_length=1, max_length=255)
    layers: tuple[Layer, ...] = Field(min_length=1)
    overwrite: bool = False
    num_cpus: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _known_labels(self) -> Self:
        known = {one.name for one in self.classes}
        if len(known) < len(self.classes):
            raise ValueError("two classes have one name")
        for layer in self.layers:
            named = {*getattr(layer, "labels", {}).values(), getattr(layer, "label", None)} - {None}
            if unknown := named - known:
                raise ValueError(f"layer {layer.layer} names no class: {', '.join(sorted(map(str, unknown)))}")
        return self
