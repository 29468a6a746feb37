"""Files of a run that are anything at all: read as they are, or refused in one line.

Valid files, with bytes and values put in the place of others, go through every reader of a run
directory. In the suite a few hundred each; `make test-slow` some ten thousand, whose findings are
in docs/training.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped,unused-ignore]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from senet.checkpoints import LAST, METRICS, RECORDER, read_record
from senet.errors import UserError
from senet.options import TrainOptions, read_options
from senet.runs import CARD, WEIGHTS, load, read_card
from senet.training import CONFIG, train

EXAMPLES = [
    pytest.param(1, id="a few"),
    pytest.param(50, id="many", marks=pytest.mark.slow),
]
OPTIONS = TrainOptions(
    image_size=8, batch_size=16, epochs=1, limit_batches=1, threads=1, accelerator="cpu"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "run"
    train(OPTIONS, out, say=lambda line: None)
    return out


def at_most(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def told(read: Callable[[], object]) -> None:
    """Reading works, or is refused in one line; anything else is a bug."""
    try:
        read()
    except UserError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 2000


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["se_resnet20", "null", "1e3", "..", "/", "*", "4", "$HOME", "${x}", "a: b"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every key and item of a document."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return []
    found = []
    for key, child in pairs:
        found += [(*path, key), *places(child, (*path, key))]
    return found


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """The document with a few of its values replaced, removed or added to."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(changed)
        if not ways:
            break
        *parents, last = draw(st.sampled_from(ways))
        inside = changed
        for key in parents:
            inside = inside[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            inside[last] = draw(VALUES)
        elif action == "remove":
            del inside[last]
        elif isinstance(inside, dict):
            inside[draw(st.text(max_size=6))] = draw(VALUES)
        else:
            inside.append(draw(VALUES))
    return changed


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes cut short, with others in their midst, or others altogether."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(result)))
        end = min(len(result), begin + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 64, 10**6])))
        new = st.binary(max_size=8) | st.sampled_from(
            [
                b"\n",
                b":",
                b"- ",
                b"&a",
                b"*a",
                b"!!python/name:os.system",
                b"[[[[",
                b"{",
                b"'",
                b"%",
            ]
        )
        result[begin:end] = draw(new)
    return bytes(result)


@pytest.mark.parametrize("times", EXAMPLES)
def test_model_json(run: Path, tmp_path: Path, times: int) -> None:
    sound = (run / CARD).read_bytes()
    (tmp_path / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes())
    documents = altered(json.loads(sound)).map(lambda d: json.dumps(d).encode())

    @given(data=damaged(sound) | documents)
    @at_most(150 * times)
    def each(data: bytes) -> None:
        (tmp_path / CARD).write_bytes(data)
        told(lambda: read_card(tmp_path))

    @given(data=documents)
    @at_most(20 * times)
    def each_network(data: bytes) -> None:
        (tmp_path / CARD).write_bytes(data)
        told(lambda: load(tmp_path))

    each()
    each_network()


@pytest.mark.parametrize("times", EXAMPLES)
def test_config_yaml(run: Path, tmp_path: Path, times: int) -> None:
    sound = (run / CONFIG).read_bytes()
    documents = altered(yaml.safe_load(sound)).map(lambda d: yaml.safe_dump(d).encode())
    path = tmp_path / CONFIG

    @given(data=damaged(sound) | documents, whole=st.booleans())
    @at_most(100 * times)
    def each(data: bytes, whole: bool) -> None:
        path.write_bytes(data)
        told(lambda: read_options(path, whole=whole))

    each()


@pytest.mark.parametrize("times", EXAMPLES)
def test_the_records_in_a_checkpoint(run: Path, tmp_path: Path, times: int) -> None:
    sound = torch.load(run / LAST, weights_only=True)
    sound["state_dict"] = {"model.w": torch.zeros(1)}  # `read_record` does not ask what network
    sound["optimizer_states"] = []
    record = sound["callbacks"][RECORDER]
    record["data"]["classes"] = list(record["data"]["classes"])
    path = tmp_path / LAST.name

    def mend(value: Any) -> Any:  # what `torch.save` refuses to write no stranger can have written
        if isinstance(value, dict):
            return {key: mend(child) for key, child in value.items()}
        if isinstance(value, list):
            return [mend(child) for child in value]
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode()
        return value

    @given(document=altered({k: v for k, v in sound.items() if not isinstance(v, Tensor)}))
    @at_most(100 * times)
    def each(document: Any) -> None:
        torch.save(mend(document), path)
        told(lambda: read_record(path))

    @given(state=altered(record))
    @at_most(100 * times)
    def each_record(state: Any) -> None:
        callbacks = sound["callbacks"] | {RECORDER: mend(state)}
        torch.save(sound | {"callbacks": callbacks}, path)
        told(lambda: read_record(path))

    each()
    each_record()


@pytest.mark.parametrize("times", EXAMPLES)
def test_the_bytes_of_a_checkpoint(run: Path, tmp_path: Path, times: int) -> None:
    path = tmp_path / LAST.name
    small = torch.load(run / LAST, weights_only=True)
    small["state_dict"], small["optimizer_states"] = {"model.w": torch.zeros(1)}, []
    torch.save(small, path)

    @given(data=damaged(path.read_bytes()))
    @at_most(100 * times)
    def each(data: bytes) -> None:
        path.write_bytes(data)
        told(lambda: read_record(path))

    each()


@pytest.mark.parametrize("times", EXAMPLES)
def test_metrics_csv_is_written_and_never_believed(run: Path, times: int) -> None:
    """The rows are those in last.ckpt; whatever is in the file, resuming puts them back."""
    sound = (run / METRICS).read_bytes()

    @given(data=damaged(sound))
    @at_most(5 * times)
    def each(data: bytes) -> None:
        (run / METRICS).write_bytes(data)
        assert not train(OPTIONS, run, resume=True, say=lambda line: None).trained
        assert (run / METRICS).read_bytes() == sound

    each()
