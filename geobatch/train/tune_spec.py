"""The tuning job as a frozen schema."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from geobatch.errors import UsageError
from geobatch.job_errors import explained, nearest
from geobatch.preprocess.base import Frozen
from geobatch.train.spec import Recipe, TrainJob

_JUDGED_BY = ("kind", "survey", "labels", "variable", "training_only")
"""Keys of data that have to be the same in all trials."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Choice(Frozen):
    """One of several values.

    Attributes:
        choice: Numbers, names or whole mappings such as models, in which spaces may stand in place of values: what is
            searched in a mapping is searched where that mapping was chosen.
    """

    choice: tuple[Any, ...] = Field(min_length=1)

    @field_validator("choice")
    @classmethod
    def _inner(cls, choice: tuple[Any, ...]) -> tuple[Any, ...]:
        for item in choice:
            _each_space(item)
        return choice

    @property
    def labels(self) -> tuple[str, ...]:
        """What each value is called: a mapping by its name or kind, told apart by a number where two have one."""
        names = [_label(item, number) for number, item in enumerate(self.choice)]
        return tuple(n if names.count(n) == 1 else f"{n}#{number}" for number, n in enumerate(names))


class Uniform(Frozen):
    """A number between two, each as likely as the other."""

    uniform: tuple[Finite, Finite]

    @field_validator("uniform")
    @classmethod
    def _rising(cls, ends: tuple[float, float]) -> tuple[float, float]:
        _require_rising(ends)
        return ends


class LogUniform(Frozen):
    """A number between two above zero, its logarithm as likely as any other."""

    loguniform: tuple[Finite, Finite]

    @field_validator("loguniform")
    @classmethod
    def _rising(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] <= 0:
            raise ValueError(f"{list(ends)}: the logarithm needs numbers above 0")
        _require_rising(ends)
        return ends


class Integer(Frozen):
    """A whole number from the first to the last, both of them included."""

    integer: tuple[StrictInt, StrictInt]

    @field_validator("integer")
    @classmethod
    def _rising(cls, ends: tuple[int, int]) -> tuple[int, int]:
        _require_rising(ends)
        return ends


def _require_rising(ends: tuple[float, float]) -> None:
    if ends[0] >= ends[1]:
        raise ValueError(f"{list(ends)}: the first end is not below the second")


AnySpace = Choice | Uniform | LogUniform | Integer
SPACES: dict[str, type[AnySpace]] = {
    "choice": Choice,
    "uniform": Uniform,
    "loguniform": LogUniform,
    "integer": Integer,
}


def _kind(given: Any) -> str | None:
    """Which space it is, None where it is none."""
    if isinstance(given, dict):
        return str(next(iter(given))) if len(given) == 1 and next(iter(given)) in SPACES else None
    return next((name for name, schema in SPACES.items() if isinstance(given, schema)), None)


Space = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[Integer, Tag("integer")],
    Discriminator(
        _kind,
        custom_error_type="space",
        custom_error_message="a space is a mapping with one key of choice, uniform, loguniform, integer",
    ),
]
_SPACE: TypeAdapter[AnySpace] = TypeAdapter(Space)


class Stopping(Frozen):
    """Trials that are behind are stopped: asynchronous successive halving (Li et al. 2020, arXiv 1810.05934).

    After `grace_epochs`, and then after `reduction` times as many and so on, a trial goes on when it is among the best
    1 / `reduction` of those before it.

    Attributes:
        grace_epochs: No trial is stopped before.
        reduction: See above.
    """

    grace_epochs: int = Field(default=1, ge=1)
    reduction: int = Field(default=3, ge=2)


class TrialResources(Frozen):
    """What each trial gets; nothing of it decides a result.

    Attributes:
        threads: Compute threads.
        gpu: Share of a GPU, such as 0.25 for four trials on each; 0 for none.
        hang_s: As in a training.
        cache_mib: As in a training.
    """

    threads: int = Field(default=1, ge=1)
    gpu: float = Field(default=0.0, ge=0, le=1)
    hang_s: float = Field(default=45.0, ge=1)
    cache_mib: int = Field(default=1024, ge=0)


Metric = Literal["mean_class_accuracy", "pixel_accuracy", "fwiou", "r2", "rmse", "mae"]


class TuneJob(Frozen):
    """`job: tune`: many trainings that differ in some keys; the best one's bundle out.

    Attributes:
        train: The training whose keys are searched, as a training job without `output` and `resources`.
        search: By dotted key of it, such as `training.learning_rate`, `model` or `data.0.curves.missing`: where to
            search. What is held out and what it is compared with cannot be searched.
        trials: How many are drawn; more of them later continue the same job.
        together: So many may run at a time: a trial is drawn, and stopped, by what all those did that lie at least so
            many before it. It decides which trials are drawn, how many of them a cluster has room for does not.
        metric: Of what is held out; by default the mean class accuracy, or the root mean square error of numbers.
        stopping: See `Stopping`; null lets every trial run to its end.
        seed: Decides which trials are drawn; the seed of the trainings is `train.training.seed`.
        output: Folder of the bundle, `tune.json`, `tune.html` and `best.yaml`.
        resources: Of each trial.
    """

    job: Literal["tune"] = "tune"
    name: str = "tune"
    train: Recipe
    search: dict[str, Space] = Field(min_length=1)
    trials: int = Field(default=20, ge=1, le=10_000)
    together: int = Field(default=4, ge=1, le=1000)
    metric: Metric | None = None
    stopping: Stopping | None = Stopping()
    seed: int = Field(default=0, ge=0, lt=2**32)
    output: str = Field(min_length=1)
    resources: TrialResources = TrialResources()

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        held_out = self.train.validation
        if not held_out.wells and (held_out.fraction == 0 or held_out.wells is not None):
            raise _refused(
                "tuning needs a part of the data held out", "train.validation", "a fraction above 0 or wells"
            )
        for key in self.search:
            self._require_own(key)
            for value in corners(self.search[key]):
                self._require_known(key, value)
        return self

    def training(self, values: dict[str, Any]) -> TrainJob:
        """The training with these values in place of its own, by dotted key.

        Raises:
            UsageError: a key is not there.
            ValidationError: the combination is impossible.
        """
        document = self.train.model_dump(mode="json")
        for key, value in values.items():
            _set(document, key, value)
        given, gpu = self.resources.model_dump(exclude={"gpu"}), self.resources.gpu > 0
        return TrainJob.model_validate(
            {**document, "name": self.name, "output": self.output, "resources": {**given, "gpu": gpu}}
        )

    def _require_own(self, key: str) -> None:
        """Refuse what must be the same in all trials, and a key inside another."""
        parts = key.split(".")
        if parts[0] == "validation" or (parts[0] == "data" and (len(parts) < 3 or parts[2] in _JUDGED_BY)):
            raise _refused("a key decides what trials are judged by and cannot be searched", f"search.{key}")
        for other in self.search:
            if key.startswith(f"{other}."):
                remedy = f"Give it inside the choices of {other}."
                raise _refused(f"a key lies inside another one that is searched, {other}", f"search.{key}", "", remedy)

    def _require_known(self, key: str, value: Any) -> None:
        """Refuse a key that names nothing and values that it cannot have; combinations are another matter."""
        try:
            self.training({key: value})
        except ValidationError as error:
            if error.errors()[0]["type"] != "value_error":
                found = explained(error, Recipe, f"search.{key}")
                raise found from None


def _refused(what: str, where: str, limit: str = "", remedy: str = "") -> UsageError:
    return UsageError(what, where=where, limit=limit, remedy=remedy)


def corners(given: Any) -> list[Any]:
    """Values in which every choice and every end of a space occurs at least once."""
    space = as_space(given)
    if isinstance(space, Choice):
        return [corner for item in space.choice for corner in corners(item)]
    if space is not None:
        return list(_ends(space))
    if isinstance(given, dict):
        parts = {key: corners(value) for key, value in given.items()}
        count = max(map(len, parts.values()), default=1)
        return [{key: values[min(k, len(values) - 1)] for key, values in parts.items()} for k in range(count)]
    return [given]


def resolved(given: Any, name: str, suggest: Callable[[str, AnySpace], Any], told: dict[str, Any]) -> Any:
    """The value with every space in it replaced by what is suggested for it.

    Args:
        given: A space, or a value that may hold some.
        name: What the parameter is called; those inside a choice are called after it too.
        suggest: Called with name and space: a number, or of a choice the position.
        told: Takes in, by name, what was suggested: a number, a plain value or what a mapping is called.
    """
    space = as_space(given)
    if isinstance(space, Choice):
        number = suggest(name, space)
        item, label = space.choice[number], space.labels[number]
        told[name] = item if not isinstance(item, dict | list) else label
        return resolved(item, f"{name}.{label}", suggest, told)
    if space is not None:
        told[name] = suggest(name, space)
        return told[name]
    if isinstance(given, dict):
        return {key: resolved(value, f"{name}.{key}", suggest, told) for key, value in given.items()}
    return given


def as_space(given: Any) -> AnySpace | None:
    """The space that a value is, None where it is a plain value."""
    return None if _kind(given) is None else _SPACE.validate_python(given)


def _ends(space: Uniform | LogUniform | Integer) -> Sequence[float]:
    if isinstance(space, Uniform):
        return space.uniform
    return space.loguniform if isinstance(space, LogUniform) else space.integer


def _each_space(given: Any) -> None:
    if as_space(given) is None and isinstance(given, dict):
        for value in given.values():
            _each_space(value)


def _label(item: Any, number: int) -> str:
    if isinstance(item, dict):
        return str(item.get("name", item.get("kind", number)))
    return str(number) if isinstance(item, list) else str(item)


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    """Put a value where a dotted key points to.

    Raises:
        UsageError: the way there is not in the document.
    """
    *parents, last = key.split(".")
    place: Any = document
    for part in parents:
        place = _item(place, part, key)
    if isinstance(place, list):
        _item(place, last, key)
        place[int(last)] = copy.deepcopy(value)
    elif isinstance(place, dict):
        place[last] = copy.deepcopy(value)
    else:
        raise _unknown(place, last, key)


def _item(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    if isinstance(place, dict) and part in place:
        return place[part]
    raise _unknown(place, part, key)


def _unknown(place: Any, part: str, key: str) -> UsageError:
    known = list(place) if isinstance(place, dict) else [str(k) for k in range(len(place or ()))]
    limit = f"one of {', '.join(known)}" if known else "a key that is there"
    return UsageError("unknown key", where=f"search.{key}", measured=part, limit=limit, remedy=nearest(part, known))
