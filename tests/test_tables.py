"""The paper's tables: our arithmetic, what explains each difference, and the command."""

from __future__ import annotations

import copy
import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from senet import tallies
from senet.cli import main
from senet.cost import count_macs
from senet.errors import UserError
from senet.insertion import attach
from senet.models import build_plain
from senet.models.published import PUBLISHED, PublishedRow, PublishedTable
from senet.models.resnet import resnet50
from senet.results import COLUMNS
from senet.sweeps import read_recipe, resolve
from senet.table_formats import print_tables
from senet.tables import UNEXPLAINED, Table, count_table, pick_tables
from senet.tallies import tally

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

# Rows whose counted figure is not the printed one; everywhere else they agree.
APART: dict[str, dict[str, set[str]]] = {
    "2": {
        "macs": {
            "SE-ResNet-50",
            *("ResNet-101", "SE-ResNet-101", "ResNet-152", "SE-ResNet-152"),
            *("ResNeXt-50 (32×4d)", "SE-ResNeXt-50 (32×4d)"),
            *("ResNeXt-101 (32×4d)", "SE-ResNeXt-101 (32×4d)"),
            *("SE-VGG-16 (BN)", "SE-BN-Inception"),
            *("Inception-ResNet-v2", "SE-Inception-ResNet-v2"),
        },
    },
    "3": {
        "macs": {"SE-MobileNet", "ShuffleNet", "SE-ShuffleNet"},
        "parameters": {"ShuffleNet", "SE-ShuffleNet"},
    },
    "reduction": {"parameters": {"r = 4", "r = 8", "r = 32"}},
    "stage": {"parameters": {"stage 4"}},
    "placement": {"parameters": {"inner 3×3"}},
    "released": {"macs": {"SE-ResNet-50"}, "file": {"SE-ResNet-152"}},
}
QUICK = ("3", "reduction", "placement")
SLOW = tuple(key for key in PUBLISHED if key not in QUICK)


def apart(table: Table) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in table.rows:
        for name in ("macs", "parameters", "file"):
            figure = getattr(row, name)
            if figure is not None and figure.explanation is not None:
                assert figure.explanation.reason != UNEXPLAINED, row
                assert figure.printed in figure.explanation.numbers
                assert row.published.label in figure.explanation.numbers
                found.setdefault(name, set()).add(row.published.label)
    return found


def check(key: str) -> None:
    table = count_table(PUBLISHED[key])
    assert [row.published for row in table.rows] == list(PUBLISHED[key].rows)
    assert apart(table) == APART.get(key, {})
    for row in table.rows:  # a remark is no ornament
        for name in ("macs", "parameters", "file"):
            remark = getattr(row.published, f"{name}_remark")
            assert not remark or getattr(row, name).explanation.reason == remark


@pytest.mark.parametrize("key", QUICK)
def test_figures_agree_or_are_explained(key: str) -> None:
    check(key)


@pytest.mark.slow
@pytest.mark.parametrize("key", SLOW)
def test_figures_agree_or_are_explained_in_the_large_tables(key: str) -> None:
    check(key)


def test_every_table_of_the_paper_is_there() -> None:
    rows = {key: len(table.rows) for key, table in PUBLISHED.items()}
    assert rows == {
        "2": 16,
        "3": 4,
        "4": 8,
        "5": 8,
        "reduction": 6,
        "squeeze": 3,
        "gate": 4,
        "stage": 6,
        "placement": 6,
        "no-squeeze": 3,
        "released": 7,
    }
    for table in PUBLISHED.values():
        for row in table.rows:
            for text in (row.top1, row.top5, row.macs, row.parameters, row.file):
                assert not text or 0 < float(text) < 1000
            assert row.top1 or row.label == "stages 2 to 4"  # of which no error is printed
            assert bool(row.variants) == table.ablation
            assert not row.options or row.network.startswith("se")


def test_printed_figures_are_in_their_rows() -> None:
    """A figure of each table, so that columns cannot change places."""
    rows = {(key, row.label): row for key, table in PUBLISHED.items() for row in table.rows}
    row = rows["2", "SE-ResNeXt-101 (32×4d)"]
    assert (row.top1, row.top5, row.macs, row.parameters) == ("20.70", "5.01", "8.00", "")
    row = rows["3", "SE-ShuffleNet"]
    assert (row.top1, row.top5, row.macs, row.parameters) == ("31.0", "11.1", "142", "2.4")
    assert rows["4", "SE-WRN-16-8"].top1 == "3.88"
    assert rows["5", "SE-Shake-Even 29 2x4x64d + Cutout"].top1 == "15.41"
    row = rows["reduction", "r = 8"]
    assert (row.top1, row.top5, row.parameters) == ("22.26", "5.99", "30.7")
    row = rows["released", "SENet-154"]
    assert (row.top1, row.top5, row.macs, row.parameters) == ("18.68", "4.47", "20.688", "115.089")


@pytest.mark.parametrize("reduction", [2, 4, 8, 16, 32])
def test_added_parameters_are_the_papers_formula(reduction: int) -> None:
    """(2/r) Σ N C² over ResNet-50's stages, and as many multiply-adds."""
    plain = tally("resnet50", 1000, {})
    twin = tally("se_resnet50", 1000, {"bias": False, "reduction": reduction})
    stages = ((3, 256), (4, 512), (6, 1024), (3, 2048))
    added = 2 * sum(units * channels**2 for units, channels in stages) // reduction
    assert twin.parameters - plain.parameters == twin.macs - plain.macs == added


def test_parameters_of_each_variant() -> None:
    expected = {
        "stage": (25_557_032, 25_581_608, 25_688_104, 26_343_464, 26_499_112, 28_071_976),
        "placement": (25_557_032, 28_071_976, 27_548_200, 28_071_976, 28_071_976, 25_714_216),
    }
    for key, parameters in expected.items():
        rows = count_table(PUBLISHED[key]).rows
        assert tuple(round(1e6 * row.parameters.counted) for row in rows) == parameters


@pytest.mark.parametrize("key", ["reduction", "stage"])
def test_statistics_explain_every_printed_parameter_but_one(key: str) -> None:
    """Also in the rows that agree without them."""
    for row in PUBLISHED[key].rows:
        counts = tally(row.network, 1000, row.options)
        stored = f"{(counts.parameters + counts.statistics) / 1e6:.1f}"
        assert not row.parameters or (stored == row.parameters) == (row.label != "r = 8")


def test_what_the_remarks_say() -> None:
    """The figures in the texts of `senet.models.published`."""
    statistics = tally("resnet50", 1000, {}).statistics
    without, biased = (
        {r: tally("se_resnet50", 1000, {"bias": bias, "reduction": r}) for r in (2, 8)}
        for bias in (False, True)
    )
    assert f"{(without[8].parameters + statistics) / 1e6:.2f}" == "30.64"
    assert f"{(biased[8].parameters + statistics) / 1e6:.2f}" == "30.66"
    assert f"{(biased[2].parameters + statistics) / 1e6:.2f}" == "45.75"
    with torch.device("meta"):
        later, mobile = resnet50(stride_in="3x3"), build_plain("mobilenet")
    assert f"{count_macs(later) / 1e9:.2f}" == "4.09"
    widths = [module.out_channels for module in mobile.modules() if isinstance(module, nn.Conv2d)]
    every = tally("mobilenet", 1000, {}).parameters + sum(2 * c * (c // 16) for c in widths)
    assert f"{every / 1e6:.2f}" == "5.06"
    stages = {row.published.label: row for row in count_table(PUBLISHED["stage"]).rows}
    left = stages["stages 2 to 4"].parameters.counted / stages["ResNet-50"].parameters.counted
    assert round(100 * (left - 1)) == 4


@pytest.mark.slow
def test_inception_resnet_with_fewer_modules() -> None:
    """What docs/reproduce.md and the remark say was tried."""
    with torch.device("meta"):
        model = build_plain("inception_resnet_v2")
    assert [f"{count_macs(model, (3, s, s)) / 1e9:.2f}" for s in (224, 320)] == ["6.47", "14.57"]
    model.repeat = model.repeat[:5]
    model.repeat_2 = model.repeat_2[:4]  # and block8, which is apart
    assert f"{count_macs(model, (3, 299, 299)) / 1e9:.3f}" == "11.756"
    twin = attach(copy.deepcopy(model), input_size=(3, 299, 299), bias=False)
    assert f"{count_macs(twin, (3, 299, 299)) / 1e9:.3f}" == "11.763"
    model.repeat_1 = model.repeat_1[:10]
    assert f"{count_macs(model, (3, 299, 299)) / 1e9:.3f}" == "8.507"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "units", "gmacs"),
    [
        ("resnet50", (3, 4, 6, 3), "3.863"),
        ("resnet101", (3, 4, 23, 3), "7.579"),
        ("resnet152", (3, 8, 36, 3), "11.296"),
        ("resnext101_32x4d", (3, 4, 23, 3), "7.979"),
    ],
)
def test_with_an_addition_for_each_element_of_a_sum(
    network: str, units: tuple[int, ...], gmacs: str
) -> None:
    maps = (256 * 56**2, 512 * 28**2, 1024 * 14**2, 2048 * 7**2)
    sums = sum(n * elements for n, elements in zip(units, maps, strict=True))
    assert f"{(tally(network, 1000, {}).macs + sums) / 1e9:.3f}" == gmacs


def one_row(**figures: str) -> Table:
    row = PublishedRow("SE", "se_resnet20", options={"bias": False}, **figures)
    return count_table(PublishedTable("x", "A table", (row,), unit="M", num_classes=10))


def test_a_figure_that_nothing_explains_is_said_to_be_one() -> None:
    (row,) = one_row(macs="40", parameters="0.27").rows
    assert row.macs.explanation is not None  # more than printed: no element explains that
    assert row.macs.explanation.reason == UNEXPLAINED
    assert row.parameters.explanation is None
    (row,) = one_row(macs="99", parameters="0.29").rows
    assert [one.reason for one in row.explanations] == [UNEXPLAINED] * 2


def test_rules_of_explanation() -> None:
    (row,) = one_row(macs="41.0", parameters="0.274").rows
    macs, parameters = row.explanations
    assert "one operation for each element" in macs.reason
    assert "running means" in parameters.reason
    (row,) = one_row(parameters="0.2").rows
    assert "cut off" in row.explanations[0].reason


def test_tables_are_picked_in_order() -> None:
    assert [table.key for table in pick_tables(["gate", "2", "gate"])] == ["2", "gate"]
    assert [table.key for table in pick_tables([])] == list(PUBLISHED)
    with pytest.raises(UserError, match="there is no table '6' to count; known: '2', '3'"):
        pick_tables(["2", "6"])
    with pytest.raises(UserError, match=r"nearest: 'reduction'.*; all: 2, 3, 4, 5, reduction"):
        pick_tables(["reductions"])


def told(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main(["tables", *map(str, arguments)])
    out, err = capfd.readouterr()
    return status, out, err


def printed(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    status, out, err = told(capfd, *arguments)
    assert (status, err) == (0, "")
    return out


def complaint(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    status, out, err = told(capfd, *arguments)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    return line


def test_the_console_shows_printed_counted_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    out = printed(capfd, "reduction")
    (line,) = (line for line in out.splitlines() if line.startswith("r = 32"))
    assert line.split()[3:] == ["22.72/6.20", "3.859", "26.9M", "26.81M", "-0.09", "a"]
    assert "a: counted with the norms' running means" in out
    assert "r = 32 26.815, with them 26.868, printed 26.9" in out
    assert "measured" not in out
    assert "-0.00" not in out.replace("-0.00 ", "")


def test_the_console_fits_80_columns() -> None:
    table = count_table(PUBLISHED["3"])
    out = io.StringIO()
    print_tables([table], Console(file=out, width=80))
    assert "…" not in out.getvalue()
    assert "\nSE-ShuffleNet  31.0/11.1      142   138.07" in out.getvalue()


def test_markdown_is_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    lines = printed(capfd, "reduction", "--format=markdown").splitlines()
    assert lines[0] == f"## {PUBLISHED['reduction'].title}"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 6
    assert len({line.count("|") for line in rows}) == 1
    assert rows[3] == "| r = 4 | 22.25/6.09 | 3.868 | 35.7M | 35.62M | -0.08 | a |"


def test_csv_and_json_have_all_rows(capfd: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capfd, "no-squeeze", "3", "--format", "csv"))))
    records: list[dict[str, Any]] = json.loads(printed(capfd, "3", "no-squeeze", "--json"))
    assert [row["row"] for row in rows] == [record["row"] for record in records]
    assert [row["table"] for row in rows] == ["3"] * 4 + ["no-squeeze"] * 3
    for row, record in zip(rows, records, strict=True):
        assert float(row["macs_counted"]) == record["macs_counted"]
        assert row["macs_printed"] == str(record["macs_printed"] or "")
    assert records[5]["options"] == {"bias": False, "squeeze": "none"}
    assert records[5]["macs_printed"] == 4.27
    assert abs(records[5]["macs_difference"]) < 0.005
    assert "cut off" in records[2]["parameters_explanation"]


def test_a_file_is_written_whole(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "tables.md"
    assert printed(capfd, "no-squeeze", "--format=markdown", "--out", out) == ""
    assert out.read_text() == printed(capfd, "no-squeeze", "--format=markdown")
    assert list(tmp_path.iterdir()) == [out]
    assert "which is a folder" in complaint(capfd, "3", "--out", tmp_path)
    assert "is no folder" in complaint(capfd, "3", "--out", tmp_path / "none" / "tables.md")


def test_measured_errors_are_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    head = ",".join(COLUMNS)
    rows = ["se_resnet20,digits,r4,0,0.91,,2026-11-27,CPU", "resnet20,digits,plain,0,0.9,,,CPU"]
    (tmp_path / "digits.csv").write_text("\n".join((head, *rows, "")))
    out = printed(capfd, "reduction", "no-squeeze", "--results", tmp_path)
    assert out.count("measured top-1") == 1  # the other table has no results
    (line,) = (line for line in out.splitlines() if line.startswith("r = 4"))
    assert "9.00 (se_resnet20, digits, 1 run)" in line
    (record,) = (
        record
        for record in json.loads(printed(capfd, "reduction", "--json", "--results", tmp_path))
        if record["row"] == "ResNet-50"
    )
    (measured,) = record["measured"]
    assert measured["network"] == "resnet20"
    assert measured["top1_error"] == pytest.approx(10)


def test_results_stand_beside_their_network_and_data(tmp_path: Path) -> None:
    from senet.results import Result

    def run(network: str, data: str, variant: str = "plain", source: str = "pair") -> Result:
        return Result(source, network, data, variant, 0, 0.5, None, "", "")

    results = [
        run("resnet20", "cifar10"),
        run("resnet20", "cifar100"),
        run("resnet20", "cifar10", "wide"),
        run("resnet20", "cifar10", source="gate"),  # beside blocks without biases
        run("se_resnet20", "cifar10", "tanh", source="gate"),
    ]
    row = PublishedRow("ResNet-20", "resnet20")
    table = PublishedTable("x", "A table", (row,), num_classes=10, data="cifar10")
    (found,) = count_table(table, results).rows[0].measured
    assert (found.source, found.data, found.runs) == ("pair", "cifar10", 1)
    anywhere = count_table(replace(table, data=None), results).rows[0].measured
    assert [one.data for one in anywhere] == ["cifar10", "cifar100"]


def test_a_sweep_stands_beside_the_ablation_that_it_is(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One of several ablations at once in each of them, and as `senet sweep` leaves it."""
    head = ",".join(COLUMNS)
    rows = [
        f"se_resnet18,tiny,{variant},{seed},0.{seed + top1},,,"
        for variant, top1 in (("plain", 50), ("se", 54), ("r4", 52), ("post", 56))
        for seed in (0, 1)
    ]
    out = tmp_path / "ablations"
    out.mkdir()
    (out / "results.csv").write_text("\n".join((head, *rows, "")))
    for folder in (tmp_path, out):
        words = ("reduction", "squeeze", "placement", "--json", "--results", folder)
        found = {
            (record["table"], record["row"]): [one["top1_error"] for one in record["measured"]]
            for record in json.loads(printed(capfd, *words))
            if record["measured"]
        }
        assert found == {
            ("reduction", "r = 4"): [pytest.approx(47.5)],
            ("reduction", "r = 16"): [pytest.approx(45.5)],
            ("reduction", "ResNet-50"): [pytest.approx(49.5)],
            ("placement", "ResNet-50"): [pytest.approx(49.5)],
            ("placement", "standard"): [pytest.approx(45.5)],
            ("placement", "post"): [pytest.approx(43.5)],
        }
    status, _, err = told(capfd, "gate", "--results", tmp_path)
    assert (status, err.count("\n")) == (0, 1)
    assert f"none of the 8 results in {tmp_path} belongs beside a row of these tables" in err


def test_the_recipes_variants_are_the_tables_rows() -> None:
    """Each name and what it asks for; only plain and se are in several tables."""
    names: list[str] = []
    for path in sorted((RECIPES / "ablations").glob("*.yaml")):
        table, sweep = PUBLISHED[path.stem.replace("_", "-")], resolve(read_recipe(path), {})
        rows = {name: row for row in table.rows for name in row.variants}
        of_other_networks = {"stage0", "stage1", "stage5", "stages0to1"}
        assert set(rows) | {"se"} == set(sweep.options) - of_other_networks | {"se"}
        for name, options in sweep.options.items():
            if name not in rows:
                continue
            asked = {key: getattr(options, key) for key in rows[name].options}
            if "sites" in asked:
                asked["sites"] = options.site_filters
            wanted = dict(rows[name].options)
            if isinstance(wanted.get("sites"), int):
                wanted["sites"] = (wanted["sites"],)
            assert asked == wanted, name
        names += set(rows) - {"plain", "se"}
    assert len(names) == len(set(names)) == 5 + 2 + 3 + 5 + 5 + 1


def test_mistakes_get_a_line(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no table '1' to count" in complaint(capfd, "1")
    assert "format is 'html', but must be one of" in complaint(capfd, "3", "--format=html")
    assert "two forms" in complaint(capfd, "3", "--format=csv", "--json")
    assert "is no folder" in complaint(capfd, "3", "--results", tmp_path / "none")
    unknown = replace(PUBLISHED["3"], rows=(PublishedRow("x", "mobilnet"),))
    monkeypatch.setattr("senet.commands.tables.pick_tables", lambda names: (unknown,))
    assert "unknown model 'mobilnet'" in complaint(capfd, "3")
    small = replace(PUBLISHED["3"], rows=(PublishedRow("x", "resnet34"),))
    monkeypatch.setattr("senet.commands.tables.pick_tables", lambda names: (small,))
    monkeypatch.setattr(tallies, "native_input_size", lambda name: (3, 1, 1))
    assert "multiply-adds of 'resnet34' cannot be counted" in complaint(capfd, "3")
