"""benchmarks/profiles.py: operators that really ran, of both networks, in PyTorch and elsewhere."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "profiles.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize(
    ("column", "convolution", "product"),
    [
        ("infer", "_convolution", "mul_"),
        ("train", "convolution_backward", "sigmoid_backward"),
        ("onnxruntime", "Conv", "Mul"),
        ("openvino", "Convolution", "Multiply"),
    ],
)
def test_only_ours_has_a_product(
    script: dict[str, Any], tmp_path: Path, column: str, convolution: str, product: str
) -> None:
    words = ["timm/test_resnet", "--size=64", "--steps=3", f"--out={tmp_path / 'p.csv'}"]
    script["main"]([*words, f"--column={column}", "--threads=1"])
    found = {line["operator"]: line for line in lines(tmp_path / "p.csv")}
    assert {line["column"] for line in found.values()} == {column}
    assert float(found[convolution]["plain_ms"]) > 0 < float(found[convolution]["senet_ms"])
    assert float(found[product]["plain_ms"]) == 0 < float(found[product]["senet_ms"])
    for row in ("plain_ms", "senet_ms"):
        parts = [float(line[row]) for name, line in found.items() if name != "all"]
        assert max(parts) <= float(found["all"][row])


def test_other_columns_keep_their_lines(script: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    words = ["resnet20", "--size=8", "--steps=1", f"--out={file}"]
    for batch in (1, 2, 1):
        script["main"]([*words, f"--batch={batch}"])
    counts = [line["batch"] for line in lines(file) if line["operator"] == "all"]
    assert counts == ["2", "1"]


def test_what_the_compiler_made_goes_by_what_it_does(script: dict[str, Any]) -> None:
    for name, kind in (
        ("aten::add_", "add_"),
        ("graph_0_cpp_fused_add_relu_3", "cpp_fused_add_relu"),
        ("graph_12_cpp_fused_relu", "cpp_fused_relu"),
        ("## Call CompiledFxGraph fqjo7v ##", "Call CompiledFxGraph"),
        ("Torch-Compiled Region: 0/1", "Torch-Compiled Region"),
    ):
        assert script["_kind"](name) == kind
