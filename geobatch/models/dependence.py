"""Which output cells depend on which input cells, followed through a network by structure, not by values.

Inside `DependenceMode` a marked tensor holds no data: a cell is 1 where it depends on the probed input cells and 0
where it does not. Every operation that reaches PyTorch's dispatcher, be it a module, a function or a method, is
replaced by its rule for marks: a convolution spreads them over its kernel whatever its weights, a rectifier lets them
pass whether it is on or off, a pooling passes every candidate, softmax couples all it runs over. An operation without
a rule counts as depending on all of its input. Marks only ever add, so nothing hides a path; too many marks cost
arithmetic, never exactness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MARK = "_geobatch_dependence"
_COPY = "_geobatch_copy_of_a_view"
_BLANK = {
    *("empty", "zeros", "ones", "full", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full"),
    *("new_empty_strided", "empty_like", "zeros_like", "ones_like", "full_like"),
}
_MOVES = {
    *("permute", "transpose", "t"),
    *("slice", "select", "narrow", "unsqueeze", "squeeze", "expand", "cat", "stack", "split", "split_with_sizes"),
    *("unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes", "chunk", "unbind", "unfold", "as_strided", "alias"),
    *("detach", "contiguous", "flip", "roll", "repeat", "diagonal", "pixel_shuffle", "pixel_unshuffle", "lift_fresh"),
    *("channel_shuffle", "native_channel_shuffle", "index_select", "index", "gather", "im2col", "col2im"),
    *(f"{kind}_pad{d}d" for kind in ("reflection", "replication") for d in (1, 2, 3)),
    *(f"{kind}_pool{d}d" for kind in ("avg", "max") for d in (1, 2, 3)),
    *(f"max_pool{d}d_with_indices" for d in (2, 3)),
    *(f"{kind}_pool{d}d" for kind in ("_adaptive_avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3)),
    *(f"{kind}{d}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}
_COUPLED = {
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "cummax",
    "cummin",
    "sort",
}
_UNTAGGED_POINTWISE = {"_prelu_kernel", "hardswish", "hardswish_", "log_sigmoid_forward", "_to_copy", "native_dropout"}
_ABOUT_SHAPES = {"_fused_sdp_choice", "is_same_size"}


class WholeDependenceError(Exception):
    """The network does what dependence cannot be followed through: every output may depend on every input."""


class DependenceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a network on marks in place of values: under `torch.no_grad`, and on a copy, whose buffers may change."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The marks of what `func` returns."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _BLANK:
            return _blank(func(*args, **kwargs))
        tensors = list(_tensors((args, kwargs)))
        as_it_is = name in _ABOUT_SHAPES or torch.Tag.inplace_view in func.tags
        if as_it_is or not any(map(is_marked, tensors)):
            return func(*args, **kwargs)
        values = _bound(func, args, kwargs)
        if name in _RULES:
            result = _RULES[name](func, values)
        elif name in _MOVES:
            result = _moved(func, args, kwargs)
        elif name in _COUPLED:
            result = _coupled(values)
        elif torch.Tag.pointwise in func.tags or name in _UNTAGGED_POINTWISE:
            result = _joined(tensors)
        elif torch.Tag.reduction in func.tags:
            result = _reduced(values)
        else:
            result = _everything(func, args, kwargs)
        return _returned(func, name, args, result)


def mark(cells: Tensor) -> Tensor:
    """`cells`, 0 or 1 each, as the marks of a tensor."""
    setattr(cells, _MARK, True)
    return cells


def is_marked(tensor: Tensor) -> bool:
    """True for a tensor of marks; any other is a constant."""
    return getattr(tensor, _MARK, False)


def _returned(func: Any, name: str, args: tuple[Any, ...], result: Any) -> Any:
    """`result` in the form in which `func` returns, its own argument when it works in place."""
    if name.endswith("_") and not name.endswith("__"):
        return _written(args[0], result)
    count = len(func._schema.returns)
    if count > 1 and isinstance(result, Tensor):
        result = tuple(result.clone() for _ in range(count))
    for tensor in _tensors(result):
        mark(tensor)
    return result


def _written(target: Tensor, cells: Tensor) -> Tensor:
    if getattr(target, _COPY, False) or (target._base is not None and getattr(target._base, _COPY, False)):
        raise WholeDependenceError("a view is written to that could not be kept one")
    if not is_marked(target):
        if target._base is not None:
            raise WholeDependenceError("a part of a constant is overwritten")
        target.zero_()
    target.copy_(cells.expand(target.shape))
    return mark(target)


def _blank(tensor: Tensor) -> Tensor:
    """A new tensor may be filled part by part later; integers are indices and keep their values."""
    return mark(tensor.zero_()) if tensor.is_floating_point() else tensor


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """For operations that move, copy or average cells, with non-negative weights or such as do not cancel."""
    if any(is_marked(t) for value in (*args[1:], *kwargs.values()) for t in _tensors(value)) and not isinstance(
        args[0], list | tuple
    ):
        return _everything(func, args, kwargs)
    result = func(*_map(_marks_alone, args), **_map(_marks_alone, kwargs))
    if any(r.alias_info is not None for r in func._schema.returns):
        return result
    return _map(lambda t: (t != 0).to(torch.get_default_dtype()), result)


def _marks_alone(tensor: Tensor) -> Tensor:
    return tensor if is_marked(tensor) or not tensor.is_floating_point() else torch.zeros_like(tensor)


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    """A cell depends on what the cells at its place depend on."""
    tensors = list(tensors)
    marked = [t for t in tensors if is_marked(t)]
    shape = np.broadcast_shapes(*(t.shape for t in tensors))
    cells = marked[0].expand(shape).clone()
    for other in marked[1:]:
        torch.maximum(cells, other.to(cells.dtype), out=cells)
    return cells


def _reduced(values: dict[str, Any]) -> Tensor:
    x = next(_tensors(values))
    dims: Any = values.get("dim")
    dims = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return x.amax(tuple(dims), keepdim=bool(values.get("keepdim", False))) if x.dim() else x.clone()


def _coupled(values: dict[str, Any]) -> Tensor:
    x: Tensor = values["self"]
    return x.amax(values["dim"], keepdim=True).expand(x.shape).clone()


def _everything(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation without a rule: all it returns depends on all it is given."""
    try:
        result = func(*args, **kwargs)
    except Exception as error:
        raise WholeDependenceError(str(func)) from error
    if not all(isinstance(part, Tensor | list | tuple) for part in _parts(result)):
        raise WholeDependenceError(f"{func} reads numbers out of the data")
    return _map(lambda t: torch.ones(t.shape), result)


def _convolved(func: Any, values: dict[str, Any]) -> Tensor:
    x, weight, groups = values["input"], values["weight"], values["groups"]
    if is_marked(weight) and weight.any():
        return torch.ones(func(**{**values, "bias": None}).shape)
    # All weights of a kernel count alike, so one channel speaks for all of its group.
    per_group = x.reshape(x.shape[0], groups, -1, *x.shape[2:]).amax(2)
    settings = {k: v for k, v in values.items() if k not in ("input", "weight", "bias")}
    kernel = torch.ones((groups, 1, *weight.shape[2:]), dtype=x.dtype)
    # Fast algorithms leave rounding noise where the exact sum of ones and zeros is zero.
    cells: Tensor = func(per_group, kernel, None, **settings) > 0.5
    outputs = weight.shape[1] if values["transposed"] else weight.shape[0] // groups
    return cells.to(x.dtype).repeat_interleave(outputs, dim=1)


def _batch_normed(func: Any, values: dict[str, Any]) -> Tensor:
    """A fixed scaling with stored statistics; otherwise, as instance norm does, with those of batch and patch."""
    x: Tensor = values["input"]
    if not values.get("training", "with_update" in func._schema.name):
        return x.clone()
    return x.amax([d for d in range(x.dim()) if d != 1], keepdim=True).expand(x.shape).clone()


def _group_normed(_func: Any, values: dict[str, Any]) -> Tensor:
    x: Tensor = values["input"]
    groups = x.reshape(values["N"], values["group"], -1)
    return groups.amax(2, keepdim=True).expand(groups.shape).reshape(x.shape).clone()


def _layer_normed(_func: Any, values: dict[str, Any]) -> Tensor:
    x: Tensor = values["input"]
    return x.amax(tuple(range(-len(values["normalized_shape"]), 0)), keepdim=True).expand(x.shape).clone()


def _padded(func: Any, values: dict[str, Any]) -> Tensor:
    padded: Tensor = func(values["self"], values["pad"], 0)
    return padded


def _reshaped(_func: Any, values: dict[str, Any]) -> Tensor:
    """A view; a copy where marks lie in memory in another order than values would, which may not be written to."""
    x: Tensor = values["self"]
    try:
        return x.view(values["size"])
    except RuntimeError:
        copied = x.reshape(values["size"])
        setattr(copied, _COPY, True)
        return copied


def _gated(_func: Any, values: dict[str, Any]) -> Tensor:
    x: Tensor = values["self"]
    first, second = x.chunk(2, values["dim"])
    return torch.maximum(first, second)


def _multiplied(_func: Any, values: dict[str, Any]) -> Tensor:
    """Matrix products, with or without an addend: a row on the left meets a column on the right."""
    left, right, *addend = _factors(values)
    shape = torch.matmul(torch.ones_like(left), torch.ones_like(right))
    cells = torch.zeros_like(shape)
    if is_marked(left):
        cells += torch.matmul(left, torch.ones_like(right))
    if is_marked(right):
        cells += torch.matmul(torch.ones_like(left), right)
    for other in addend:
        cells = cells + other
    return (cells > 0.5).to(cells.dtype)


def _factors(values: dict[str, Any]) -> list[Tensor]:
    for left, right in (("mat1", "mat2"), ("batch1", "batch2"), ("mat", "vec")):
        if left in values:
            return [values[left], values[right], *([values["self"]] if is_marked(values["self"]) else [])]
    return list(_tensors(values))


def _overwritten(_func: Any, values: dict[str, Any]) -> Tensor:
    target, source = values["self"], values.get("src", values.get("value"))
    if isinstance(source, Tensor) and is_marked(source):
        return source.expand(target.shape)
    return torch.zeros(target.shape)


def _put(func: Any, values: dict[str, Any]) -> Tensor:
    target: Tensor = values["self"]
    indices, source = values["indices"], values["values"]
    if any(is_marked(t) for t in _tensors(indices)):
        return torch.ones(target.shape)
    cells = target.clone() if is_marked(target) else torch.zeros(target.shape)
    cells = torch.index_put(cells, indices, _marks_alone(source).to(cells.dtype), values["accumulate"])
    return cells.ne(0).to(cells.dtype)


_Rule = Callable[[Any, dict[str, Any]], Any]
_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), _convolved),
    **dict.fromkeys((*_NORMS, "_batch_norm_with_update", "_batch_norm_no_update"), _batch_normed),
    "native_group_norm": _group_normed,
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_normed),
    "constant_pad_nd": _padded,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), _reshaped),
    "glu": _gated,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"), _multiplied),
    **dict.fromkeys(("copy_", "fill_", "zero_"), _overwritten),
    **dict.fromkeys(("index_put", "index_put_", "_index_put_impl_"), _put),
}


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, defaults filled in."""
    bound = {}
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            bound[argument.name] = args[place]
        elif argument.name in kwargs or argument.has_default_value():
            bound[argument.name] = kwargs.get(argument.name, argument.default_value)
    return bound


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _tensors(value: Any) -> Iterator[Tensor]:
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if isinstance(value, Tensor):
        yield value
    for part in nested:
        yield from _tensors(part)


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: _map(change, v) for k, v in value.items()}
    return type(value)(_map(change, v) for v in value) if isinstance(value, list | tuple) else value
