"""The networks in files of `torch.export`, read without running anything that a file says.

A file is a zip archive: weights as raw numbers, and the graph as JSON, a list of calls of ATen
operators. Here the calls are made one after the other, those of operators that image classifiers
are made of; pickles, code and symbolic expressions in the file are never looked at.
"""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .job import Runner
from .torch_export import CARD_FILE

__all__ = ["OPERATORS", "read"]

_NAMES = """
conv1d conv2d conv3d linear addmm mm bmm matmul batch_norm group_norm layer_norm relu relu_
relu6 relu6_ silu silu_ gelu sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardsigmoid
hardsigmoid_ hardswish hardswish_ leaky_relu leaky_relu_ elu elu_ mish mish_ softplus softmax
log_softmax prelu clamp clamp_ clamp_min clamp_max exp log sqrt rsqrt pow neg add add_ sub sub_
mul mul_ div div_ maximum minimum dropout dropout_ feature_dropout alpha_dropout avg_pool1d
avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d max_pool1d
max_pool2d max_pool3d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d mean sum amax
amin max var cat stack chunk split split_with_sizes unbind pad constant_pad_nd flatten reshape
view _unsafe_view squeeze unsqueeze transpose permute expand expand_as slice select roll repeat
flip contiguous clone detach detach_ alias to type_as tensordot einsum lift_fresh_copy sym_size
scaled_dot_product_attention
"""
# None of these reads a file or takes an index unchecked.
OPERATORS = frozenset(_NAMES.split())
"""The operators of ATen that are run, all their overloads with tensors in them."""

_ON_SIZES: Mapping[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_MAJOR = 8  # version of the JSON's schema
# Documents have many ways of not being what they should be; the last two are zipfile's, of an
# archive that is encrypted, of another version or cut off.
_DAMAGES = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError),
    *(RuntimeError, EOFError),
)


def read(path: Path) -> tuple[str | None, Runner]:
    """The model card of a file, if it has one, and the network, run by torch on the CPU.

    Raises:
        UserError: it is no file of `torch.export`, of another version, damaged, or has
            operators that are not in `OPERATORS`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            document, network = _open(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{str(path)!r} is no file of torch.export: {error}") from error
    except _RefusedError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error
    except _DAMAGES as error:
        raise UserError(f"{str(path)!r} is damaged: {error!r}") from error
    return document, network


class _RefusedError(Exception):
    """Something in a file that is not taken from strangers, in a phrase."""


@dataclass(frozen=True)
class _Call:
    """One operator, its arguments as in the file, and the names of what it makes.

    After it nobody reads what ``last_read`` names.
    """

    operator: Callable[..., Any]
    arguments: Sequence[tuple[str | None, Callable[[Mapping[str, Any]], Any]]]
    outputs: tuple[str, ...]
    unpacked: bool
    last_read: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Network:
    calls: Sequence[_Call]
    weights: Mapping[str, Tensor]
    image: str
    logits: str

    def __call__(self, images: Tensor) -> Tensor:
        values: dict[str, Any] = {**self.weights, self.image: images}
        for call in self.calls:
            given = [(name, value(values)) for name, value in call.arguments]
            made = call.operator(
                *(value for name, value in given if name is None),
                **{name: value for name, value in given if name is not None},
            )
            values.update(zip(call.outputs, made if call.unpacked else (made,), strict=True))
            del made, given
            for name in call.last_read:
                del values[name]
        logits: Tensor = values[self.logits]
        return logits


def _open(archive: zipfile.ZipFile) -> tuple[str | None, _Network]:
    names = archive.namelist()
    root = names[0].partition("/")[0]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise _RefusedError("its parts are compressed, as torch.export does not")
    if f"{root}/models/model.json" not in names:
        raise _RefusedError("it has no models/model.json, as torch.export.save writes it")
    program = json.loads(archive.read(f"{root}/models/model.json"))
    if program["schema_version"]["major"] != _MAJOR:
        raise _RefusedError(
            f"its schema is version {program['schema_version']['major']}, not {_MAJOR}; "
            "export it again with the torch that is installed"
        )
    card = f"{root}/extra/{CARD_FILE}"
    document = archive.read(card).decode() if card in names else None
    return document, _network(program["graph_module"], _tensors(archive, root))


def _tensors(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """Weights and constants by the names that the module had for them."""
    made = {}
    for kind in ("weights", "constants"):
        folder = f"{root}/data/{kind}"
        config = json.loads(archive.read(f"{folder}/model_{kind}_config.json"))["config"]
        for name, entry in config.items():
            if entry["use_pickle"] or not entry["path_name"].startswith(("weight_", "tensor_")):
                raise _RefusedError(f"{name!r} is a pickle, which can run any program")
            meta = entry["tensor_meta"]
            data = bytearray(archive.read(f"{folder}/{entry['path_name']}"))
            dtype = _DTYPES[meta["dtype"]]
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            sizes, strides = ([s["as_int"] for s in meta[key]] for key in ("sizes", "strides"))
            try:
                made[name] = flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
            except RuntimeError as error:
                raise _RefusedError(f"{name!r} is not as large as it says: {error}") from error
    return made


def _network(module: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Network:
    graph, signature = module["graph"], module["signature"]
    weights, images = {}, []
    for entry in signature["input_specs"]:
        ((kind, spec),) = entry.items()
        if kind == "user_input":
            images.append(spec["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            weights[spec["arg"]["name"]] = tensors[spec[f"{kind}_name"]]
        else:
            raise _RefusedError(f"it takes a {kind}")
    kinds = [kind for entry in signature["output_specs"] for kind in entry]
    if len(images) != 1 or kinds != ["user_output"]:
        raise _RefusedError(f"it maps {len(images)} inputs to {kinds}, not images to logits")
    (logits,) = graph["outputs"]
    # What makes nothing only asserts.
    nodes = [node for node in graph["nodes"] if node["outputs"]]
    calls: list[_Call] = []
    awaited = {logits["as_tensor"]["name"]}
    for node in reversed(nodes):  # from the end, so that who reads a value last comes first
        call = _call(node)
        last = {*_read_by(node), *call.outputs} - awaited
        awaited |= last
        calls.append(replace(call, last_read=frozenset(last)))
    return _Network(calls[::-1], weights, images[0], logits["as_tensor"]["name"])


def _read_by(node: Mapping[str, Any]) -> Iterator[str]:
    """The names of the values among a call's arguments."""
    for entry in node["inputs"]:
        ((kind, value),) = entry["arg"].items()
        if kind in ("as_tensor", "as_sym_int", "as_tensors", "as_sym_ints"):
            for each in value if kind.endswith("s") else (value,):
                if "as_int" not in each:
                    yield _name(each)


def _call(node: Mapping[str, Any]) -> _Call:
    function = _operator(node["target"])
    on_sizes = node["target"] in _ON_SIZES
    arguments = [
        (None if on_sizes else entry["name"], _argument(entry["arg"])) for entry in node["inputs"]
    ]
    names: list[str] = []
    unpacked = len(node["outputs"]) > 1
    for output in node["outputs"]:
        ((kind, value),) = output.items()
        if kind == "as_tensors":
            names += [each["name"] for each in value]
            unpacked = True
        elif kind in ("as_tensor", "as_sym_int"):
            names.append(value["name" if kind == "as_tensor" else "as_name"])
        else:
            raise _RefusedError(f"{node['target']} makes {kind.removeprefix('as_')}")
    return _Call(function, arguments, tuple(names), unpacked)


def _operator(target: str) -> Callable[..., Any]:
    if target in _ON_SIZES:
        return _ON_SIZES[target]
    name, _, overload = target.removeprefix("torch.ops.aten.").partition(".")
    if not target.startswith("torch.ops.aten.") or name not in OPERATORS:
        raise _RefusedError(f"it calls {target!r}, which is not an operator of image classifiers")
    packet = getattr(torch.ops.aten, name)
    if overload not in packet.overloads():
        raise _RefusedError(f"it calls {target!r}, which this torch does not have")
    function: Callable[..., Any] = getattr(packet, overload)
    return function


def _argument(argument: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    """How to get an argument's value from those made so far."""
    ((kind, value),) = argument.items()
    if kind in ("as_tensor", "as_sym_int"):
        return _reference(value)
    if kind in ("as_tensors", "as_sym_ints"):
        each = [_reference(item) for item in value]
        return lambda values: [get(values) for get in each]
    constant = _constant(kind, value)
    return lambda values: constant


def _reference(value: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    if "as_int" in value:
        return lambda values: value["as_int"]
    name = _name(value)
    return lambda values: values[name]


def _name(value: Mapping[str, Any]) -> str:
    name: str = value["as_name"] if "as_name" in value else value["name"]
    return name


def _constant(kind: str, value: Any) -> Any:
    if kind == "as_none":
        return None
    if kind == "as_float":
        return float(value)  # infinities are text
    if kind in ("as_int", "as_ints", "as_bool", "as_bools", "as_string"):
        return value
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind == "as_memory_format":
        return _MEMORY_FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device" and value["type"] == "cpu":
        return torch.device("cpu")
    raise _RefusedError(f"it has an argument of kind {kind.removeprefix('as_')}: {str(value)[:40]}")
