"""Networks of other libraries, by import path, from a list of libraries that are trusted.

A bundle names the path and the parameters, and whoever loads it imports that library: so only classes of networks, and
one factory, of these libraries are imported, and nothing that fetches weights from elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from torch import Tensor, nn

from geobatch.errors import MismatchError, UsageError

LIBRARIES: Final = ("monai", "segmentation_models_pytorch", "timm", "seisbench")
"""Whose networks may be used; each is an extra of geobatch by that name, or installed by the user."""
FACTORIES: Final = ("timm.create_model",)
FETCHING: Final = ("pretrained", "checkpoint_path", "encoder_weights", "pretrained_cfg", "pretrained_cfg_overlay")
"""Parameters that fetch weights; they may be false or none."""


class Foreign(nn.Module):
    """A network of another library.

    Args:
        path: Such as `monai.networks.nets.BasicUNet`.
        parameters: Of its constructor; `$in_channels`, `$classes` and `$dims` stand for those numbers.
        in_channels: Channels of the input.
        classes: Outputs.
        dims: Axes of its input.
        total_stride: With `dense`, the input is filled up with zeros at its ends to a multiple of it, and the output
            cut again: many networks take no other sizes.
        output: `dense` per cell, or `one` per window, as the network does.

    Raises:
        UsageError: the library is not on the list or not installed, the path names no network of it, or the
            constructor does not take the parameters.
    """

    def __init__(
        self,
        path: str,
        parameters: Mapping[str, Any],
        in_channels: int = 1,
        classes: int = 2,
        dims: int = 3,
        total_stride: int = 1,
        output: Literal["dense", "one"] = "dense",
    ) -> None:
        super().__init__()
        known = {"$in_channels": in_channels, "$classes": classes, "$dims": dims}
        given = {key: _filled(value, known) for key, value in parameters.items()}
        self.path, self.output, self.total_stride = path, output, total_stride
        make = find_network(path)
        _require_nothing_fetched(path, given)
        try:
            self.network = make(**given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{path} does not take these parameters", where="model", measured=error) from error

    def forward(self, x_BC: Tensor) -> Tensor:
        """Logits `(batch, class, *axes)`, or `(batch, class)`, of an input `(batch, channel, *axes)`.

        Raises:
            MismatchError: the network answers in another form.
        """
        if self.output == "dense":
            extra = [(0, -size % self.total_stride) for size in reversed(x_BC.shape[2:])]
            logits_BK = self.network(nn.functional.pad(x_BC, [cells for ends in extra for cells in ends]))
        else:
            logits_BK = self.network(x_BC)
        axes = x_BC.ndim if self.output == "dense" else 2
        if not isinstance(logits_BK, Tensor) or logits_BK.ndim != axes:
            raise MismatchError(
                "the network does not answer as it is asked",
                where=self.path,
                measured=tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__,
                limit=f"a tensor of {axes} axes",
            )
        own: Any = (..., *(slice(size) for size in x_BC.shape[2:]))
        return logits_BK[own] if self.output == "dense" else logits_BK


def find_network(path: str) -> Callable[..., nn.Module]:
    """The class, or factory, of networks at an import path.

    Raises:
        UsageError: as `Foreign`.
    """
    library, module, name = path.split(".")[0], *path.rpartition(".")[::2]
    if library not in LIBRARIES or not all(
        part.isidentifier() and not part.startswith("_") for part in path.split(".")
    ):
        raise UsageError(
            "networks come from other libraries than these", where="model.path", measured=path, limit=LIBRARIES
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        missing = error.name == library
        raise UsageError(
            f"{library} is not installed" if missing else "no such module",
            where="model.path",
            measured=path,
            remedy=f"pip install {library.replace('_', '-')}" if missing else "",
        ) from error
    if path not in FACTORIES and not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UsageError("the path names no network", where="model.path", measured=path)
    return found  # type: ignore[return-value]


def _filled(value: Any, known: Mapping[str, int]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_filled(item, known) for item in value]
    return known.get(value, value) if isinstance(value, str) else value


def _require_nothing_fetched(path: str, parameters: Mapping[str, Any]) -> None:
    for key in FETCHING:
        if parameters.get(key):
            raise UsageError("weights are not fetched from elsewhere", where=f"model.parameters.{key}", measured=path)
    if path.startswith("segmentation_models_pytorch.") and "encoder_weights" not in parameters:
        raise UsageError(
            "this network fetches weights unless told not to",
            where="model.parameters",
            measured=path,
            remedy="Give encoder_weights: null.",
        )
    if path in FACTORIES and ":" in str(parameters.get("model_name", "")):
        raise UsageError("models are not fetched from elsewhere", where="model.parameters.model_name", measured=path)
