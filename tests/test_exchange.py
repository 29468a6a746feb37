"""Exported files: the same function in every runtime, and nothing in them is executed."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import weakref
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from networks import randomise, small_resnet
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import senet
from senet import SqueezeExcite, UserError
from senet.benchmarking import PLAIN, Setting, measure
from senet.deployment import deploy
from senet.exchange import FORMATS, archive, read_exported, ship
from senet.exchange import onnx as exchange_onnx
from senet.exchange.forms import GatedConvolution, GatedMap, in_blocks
from senet.exchange.job import Job
from senet.hoisting import InputGated, OutputGated
from senet.runs import ModelCard

CLASSES = ("Ärger", 'a "quoted" <class>', "c & d", "猫", "e\nf")
SUFFIXES = [row.suffix for row in FORMATS.values()]
WRONG = {
    ".onnx": "is no ONNX file for this machine",
    ".xml": "are no model of OpenVINO's",
    ".pt2": "is no file of torch.export|is damaged",
}
"""What is said of a file that cannot be read."""


def card(**changes: object) -> ModelCard:
    made = ModelCard(
        name="resnet20",
        num_classes=len(CLASSES),
        plan=None,
        classes=CLASSES,
        mean=(0.4, 0.5, 0.6),
        std=(0.1, 0.2, 0.3),
        image_size=16,
        versions={},
        data="digits",
        seed=1,
    )
    return replace(made, **changes)


def network() -> nn.Module:
    torch.manual_seed(0)
    made = senet.attach(small_resnet(classes=len(CLASSES)), input_size=(3, 16, 16), min_hidden=4)
    return randomise(made).eval()


def images(count: int = 4, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("column", ["onnxruntime", "openvino"])
def test_their_columns_of_the_benchmark_run(column: str) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (found,) = measure({PLAIN: lambda: pooled}, Setting(column, 2, 16), rounds=1)
    assert found.value > 0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in every format."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for name, row in FORMATS.items():
        out = folder / f"network{row.suffix}"
        shipment = ship(network(), card(), out, images=images(), format=name)
        assert shipment.files[0] == out
        assert shipment.difference <= 1e-5
        made[row.suffix] = out
    return made


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_the_network_and_its_card(files: dict[str, Path], suffix: str) -> None:
    found, exported = read_exported(files[suffix])
    assert found == card()
    for count in (1, 2, 7):
        x = images(count)
        with torch.inference_mode():
            torch.testing.assert_close(exported(x), network()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_does_not_say_where_it_was_made(files: dict[str, Path], suffix: str) -> None:
    folder = str(Path(__file__).parent).encode()
    for path in files[suffix].parent.glob(f"*{suffix}"):
        data = path.read_bytes()
        assert folder not in data
        assert b"src/senet/" not in data


@pytest.mark.parametrize("format", FORMATS)
def test_what_differs_is_not_kept(format: str, tmp_path: Path) -> None:
    out = tmp_path / f"kept{FORMATS[format].suffix}"
    out.write_bytes(b"what was there")
    shipment = ship(network(), card(), out, images=images(), format=format, tolerance=-1.0)
    assert shipment.files == ()
    assert 0 <= shipment.difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_bytes() == b"what was there"


def test_logits_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    broken = network()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    assert ship(broken, card(), tmp_path / "nan.onnx", images=images()).files == ()


def test_readers_have_to_agree_on_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of two readers makes of a file is no number; the other one's is right."""

    def read(path: Path) -> tuple[None, Any]:
        return None, lambda x: archive.read(path)[1](x) * float("nan")

    row = replace(FORMATS["torch"], read=read)
    monkeypatch.setattr("senet.exchange.shipping.FORMATS", {"torch": row})
    shipment = ship(network(), card(), tmp_path / "n.pt2", images=images(), format="torch")
    assert shipment.files == ()
    assert math.isnan(shipment.difference)


def test_a_folder_is_in_the_way(tmp_path: Path) -> None:
    out = tmp_path / "folder.xml"
    out.mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        ship(network(), card(), out, images=images(), format="openvino")


def test_a_full_disk_leaves_the_files_of_before(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {}
    for suffix in (".xml", ".bin"):
        (tmp_path / f"n{suffix}").write_bytes(b"of before" + suffix.encode())
        old[f"n{suffix}"] = b"of before" + suffix.encode()

    def full(source: object, target: Any) -> None:
        with open("/dev/full", "wb") as device:
            device.write(b"x")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left"):
        ship(network(), card(), tmp_path / "n.xml", images=images(), format="openvino")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_an_operator_that_openvino_has_not_is_told_in_a_line(tmp_path: Path) -> None:
    class Ranking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x.mean((2, 3)))

    with pytest.raises(UserError, match=r"Ranking has no OpenVINO form: .*bessel_j0") as caught:
        ship(Ranking(), card(), tmp_path / "n.xml", images=images(), format="openvino")
    assert "\n" not in str(caught.value)


def test_small_logits_are_compared_in_their_own_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = network()
    with torch.no_grad():
        for parameter in small[2][2].parameters():
            parameter.mul_(1e-6)
    unchanged = exchange_onnx.in_blocks

    def wrong(model: nn.Module) -> nn.Module:
        return nn.Sequential(unchanged(model), nn.Threshold(0.0, 0.0))

    monkeypatch.setattr(exchange_onnx, "in_blocks", wrong)
    shipment = ship(small, card(), tmp_path / "small.onnx", images=images())
    assert shipment.files == ()
    assert shipment.largest < 1e-4 < shipment.difference


def test_paddings_with_infinity_are_read(tmp_path: Path) -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(x, (0, 1, 0, 1), value=float("-inf"))
            return nn.functional.max_pool2d(padded, 2).mean((2, 3)).repeat(1, 2)[:, :5]

    out = tmp_path / "padded.pt2"
    shipment = ship(Padded(), card(), out, images=images(), format="torch", as_trained=True)
    assert shipment.files == (out,)


def test_the_twin_is_timed_beside(tmp_path: Path) -> None:
    plain = small_resnet(classes=len(CLASSES)).eval()
    out = tmp_path / "timed.xml"
    shipment = ship(
        network(), card(), out, images=images(), format="openvino", plain=plain, batch=9
    )
    assert {path.name for path in tmp_path.iterdir()} == {"timed.xml", "timed.bin"}
    assert shipment.timing is not None
    assert shipment.timing.ms > 0
    assert shipment.timing.plain_ms is not None
    assert shipment.timing.ratio is not None


def test_as_trained_and_the_opset(tmp_path: Path) -> None:
    out = tmp_path / "trained.onnx"
    shipment = ship(network(), card(), out, images=images(), as_trained=True, opset=18)
    assert shipment.report is None
    assert shipment.files == (out,)
    (opset,) = onnx.load(out).opset_import
    assert (opset.domain, opset.version) == ("", 18)
    assert read_exported(out)[0] == card()
    with pytest.raises(UserError, match="opset 17 cannot be written; use 18 to 25"):
        ship(network(), card(), out, images=images(), opset=17)


def test_a_fixed_batch_is_refused_in_a_line(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1)[:, :5]

    with pytest.raises(UserError, match="Fixed cannot be exported for any number of images") as e:
        ship(Fixed(), card(), tmp_path / "x.pt2", images=images(2), format="torch", as_trained=True)
    assert "\n" not in str(e.value)


# The blocked form


def gated(conv: nn.Conv2d, **options: object) -> InputGated:
    torch.manual_seed(1)
    made = InputGated(conv, SqueezeExcite(conv.out_channels, **options))
    return made.requires_grad_(False)


BLOCKS = {
    "W1 folded": lambda: gated(nn.Conv2d(8, 32, 1), reduction=4),
    "W1 apart": lambda: gated(nn.Conv2d(24, 16, 1), reduction=1),
    "strided": lambda: gated(nn.Conv2d(8, 32, 1, stride=2), reduction=4, gate_scale=2.0),
    "grouped": lambda: gated(nn.Conv2d(8, 32, 1, groups=4), reduction=2),
    "no bias": lambda: gated(nn.Conv2d(8, 32, 1, bias=False), reduction=4, bias=False),
    "hard": lambda: gated(nn.Conv2d(8, 32, 1), gate="hard_sigmoid", activation="silu"),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_the_blocked_form_of_a_convolution_computes_the_same(
    name: str, size: tuple[int, int]
) -> None:
    block = BLOCKS[name]()
    h = torch.randn(3, block.conv.in_channels, *size)
    form = in_blocks(nn.Sequential(block))
    assert isinstance(form[0], GatedConvolution)
    torch.testing.assert_close(form(h), block(h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_the_blocked_form_of_a_map_computes_the_same(bottleneck: bool) -> None:
    options = senet.BlockOptions(reduction=4, bottleneck=bottleneck)
    block = SqueezeExcite(16, options=options).requires_grad_(False)
    for before in (block, OutputGated(block)):
        form = in_blocks(before)
        assert isinstance(form, GatedMap)
        for shape in ((2, 16, 6, 5), (2, 16, 1, 1), (2, 16, 9), (2, 16)):
            u = torch.randn(shape)
            torch.testing.assert_close(form(u), block(u), rtol=1e-5, atol=1e-6)


def test_bottlenecks_without_a_first_layer_are_gated_from_the_input() -> None:
    for reduction in (8, 24):
        conv = nn.Conv2d(reduction, 16, 1)
        se = SqueezeExcite(16, options=senet.BlockOptions(bottleneck=False))
        block = InputGated(conv, se).requires_grad_(False)
        h = torch.randn(2, reduction, 4, 4)
        torch.testing.assert_close(in_blocks(block)(h), block(h), rtol=1e-5, atol=1e-6)


def test_other_forms_are_left_alone() -> None:
    torch.manual_seed(0)
    blocks = [
        gated(nn.Conv2d(4, 32, 3, padding=1), reduction=4),
        gated(nn.Conv2d(4, 32, 1, padding=1), reduction=4),
        SqueezeExcite(32, squeeze="max").requires_grad_(False),
        SqueezeExcite(32, channels_last=True).requires_grad_(False),
    ]
    for block in blocks:
        form = in_blocks(block)
        assert type(form) is type(block)
        assert form is not block


class Bottleneck(nn.Module):
    """ResNet-50's unit: 1×1, 3×3, 1×1, added to the input."""

    def __init__(self, channels: int = 64, narrow: int = 16) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, narrow, 1, bias=False), nn.BatchNorm2d(16))
        self.second = nn.Sequential(
            nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow)
        )
        self.third = nn.Sequential(
            nn.Conv2d(narrow, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.third(self.second(self.first(x).relu()).relu())).relu()


def bottlenecks() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(stem, Bottleneck(), Bottleneck(), head).eval()


def reorders(model: nn.Module, folder: Path) -> int:
    """How often ONNX Runtime copies a map into its layout or out of it."""
    path, optimised = folder / "m.onnx", folder / "optimised.onnx"
    exchange_onnx.write(Job(model, images(2), "{}", 20), path)
    exchange_onnx.session(path, threads=1, optimised=optimised)
    operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    return operators["ReorderInput"] + operators["ReorderOutput"]


def test_onnx_runtime_leaves_the_processors_to_others_after_a_run(tmp_path: Path) -> None:
    # By default its threads spin for some 50 ms, in which the next contender of a table runs.
    path = tmp_path / "m.onnx"
    exchange_onnx.write(Job(bottlenecks(), images(2), "{}", 20), path)
    options = exchange_onnx.session(path).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_onnx_runtime_keeps_gated_maps_in_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = reorders(deploy(bottlenecks(), input_size=(3, 16, 16)), tmp_path)
    if not plain:
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    for reduction in (4, 16):  # hidden widths that fill blocks of 8 or 16, and ones that do not
        attached = senet.attach(bottlenecks(), input_size=(3, 16, 16), reduction=reduction).eval()
        for model in (attached, deploy(attached), deploy(attached, gates="output")):
            assert reorders(model, tmp_path) == plain
    monkeypatch.setattr(exchange_onnx, "in_blocks", lambda model: model)
    assert reorders(deploy(attached), tmp_path) >= plain + 4  # what the form is for


# Files from elsewhere


def changed(path: Path, out: Path, part: str, change: object) -> Path:
    """A copy of an archive with one JSON document changed by a function."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(part):
                document = json.loads(data)
                change(document)
                data = json.dumps(document).encode()
            new.writestr(name, data)
    return out


def with_operator(target: str) -> object:
    def change(document: dict) -> None:
        node = next(n for n in document["graph_module"]["graph"]["nodes"] if n["outputs"])
        node["target"] = target

    return change


@pytest.mark.parametrize(
    "target",
    ["torch.ops.aten.from_file.default", "torch.load", "torch.hub.load", "_operator.call", "exec"],
)
def test_operators_of_strangers_are_refused(
    files: dict[str, Path], tmp_path: Path, target: str
) -> None:
    out = changed(files[".pt2"], tmp_path / "o.pt2", "models/model.json", with_operator(target))
    with pytest.raises(UserError, match="not an operator of image classifiers"):
        read_exported(out)


def test_pickles_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    def change(document: dict) -> None:
        next(iter(document["config"].values()))["use_pickle"] = True

    out = changed(files[".pt2"], tmp_path / "p.pt2", "weights_config.json", change)
    with pytest.raises(UserError, match="is a pickle, which can run any program"):
        read_exported(out)


def test_text_in_a_file_is_not_evaluated(files: dict[str, Path], tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"

    def change(document: dict) -> None:
        document["guards_code"] = [code]
        for value in document["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code

    out = changed(files[".pt2"], tmp_path / "e.pt2", "models/model.json", change)
    x = images()
    with torch.inference_mode():
        found = read_exported(out)[1](x)
        torch.testing.assert_close(found, network()(x), rtol=1e-4, atol=1e-5)
    assert not mark.exists()
    # The file is one that does harm elsewhere.
    assert code.encode() in out.read_bytes().replace(b"\\\\", b"\\")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_files_are_told_in_a_line(
    files: dict[str, Path], tmp_path: Path, suffix: str, damage: str
) -> None:
    whole = files[suffix].read_bytes()
    data = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no network"}[damage]
    out = tmp_path / f"damaged{suffix}"
    out.write_bytes(data)
    with pytest.raises(UserError, match=WRONG[suffix]) as caught:
        read_exported(out)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bytes_there",
    [{8: 1}, {8: 32}, {6: 99}, {23: 127, 27: 127}],
    ids=["encrypted", "patched", "version", "sizes"],
)
def test_an_archive_with_a_damaged_directory(
    files: dict[str, Path], tmp_path: Path, bytes_there: dict[int, int]
) -> None:
    """It has no checksum: a flipped bit there says that all is encrypted, or of another kind."""
    data = bytearray(files[".pt2"].read_bytes())
    for entry in re.finditer(b"PK\x01\x02", bytes(data)):
        for at, byte in bytes_there.items():
            data[entry.start() + at] = byte
    out = tmp_path / "o.pt2"
    out.write_bytes(data)
    with pytest.raises(UserError, match=f"{WRONG['.pt2']}|cannot be read") as caught:
        read_exported(out)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_without_images_is_told(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1], [1.0])
    node = onnx.helper.make_node("Constant", [], ["logits"], value=value)
    made = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "constant", [], [made])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "c.onnx"
    )
    with pytest.raises(UserError, match="takes 0 inputs, not images"):
        read_exported(tmp_path / "c.onnx")


def test_maps_that_nobody_reads_any_more_are_let_go(tmp_path: Path) -> None:
    """Of a chain of maps two or three live at a time, however long it is."""
    chain = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(9)], nn.AdaptiveAvgPool2d(1))
    out = tmp_path / "chain.pt2"
    model = nn.Sequential(chain, nn.Flatten()).eval()
    ship(model, card(num_classes=3, classes=("a", "b", "c")), out, images=images(), format="torch")
    runner = archive.read(out)[1]
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal most
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.dim() == 4:
                alive.append(weakref.ref(made))
            most = max(most, sum(each() is not None for each in alive))
            return made

    with torch.inference_mode(), Watching():
        runner(images())
    assert len(alive) >= 9
    assert most <= 3  # the third within an operator


def test_files_that_lack_something_are_told(files: dict[str, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone.xml"
    alone.write_bytes(files[".xml"].read_bytes())
    with pytest.raises(UserError, match=r"alone\.bin"):
        read_exported(alone)
    with pytest.raises(UserError, match="does not exist"):
        read_exported(tmp_path / "none.onnx")
    bare = onnx.load(files[".onnx"])
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match="does not say which classes"):
        read_exported(tmp_path / "bare.onnx")
    for value in (card(image_size=20), card(num_classes=1, classes=("one",))):
        bare.metadata_props.add(key="senet", value=value.to_json())
        onnx.save(bare, tmp_path / "other.onnx")
        with pytest.raises(UserError, match=r"does not run|was expected, for its classes"):
            read_exported(tmp_path / "other.onnx")
        del bare.metadata_props[:]


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("openvino",) * 2]
)
def test_what_is_not_installed_is_named(
    format: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / f"x{FORMATS[format].suffix}"
    with pytest.raises(UserError, match=rf'need {package}: pip install "senet\[export\]"'):
        ship(network(), card(), out, images=images(), format=format)
    assert not list(tmp_path.iterdir())
