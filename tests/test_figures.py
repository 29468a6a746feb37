"""senet.figures: which blocks and classes, and what the pictures hold."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from recorded import make_excitations

from senet.drawing import png_of, svg_of
from senet.errors import UserError
from senet.figures import (
    activation_figure,
    default_blocks,
    saturation_figure,
    short_names,
    specificity_figure,
    spread,
)


def test_blocks_are_those_of_the_paper() -> None:
    """SE_2_3, SE_3_4, SE_4_6, SE_5_1, SE_5_2, SE_5_3 of SE-ResNet-50."""
    stages = [2] * 3 + [3] * 4 + [4] * 6 + [5] * 3
    assert default_blocks(make_excitations(widths=[2] * 16, stages=stages)) == [
        2,
        6,
        12,
        13,
        14,
        15,
    ]


def test_blocks_of_a_small_network_and_of_one_without_stages() -> None:
    assert default_blocks(make_excitations(widths=[4])) == [0]
    assert default_blocks(make_excitations(widths=[4] * 5, stages=[None] * 5)) == [2, 3, 4]


@pytest.mark.parametrize(("of", "count"), [(1, 5), (5, 5), (7, 3), (2048, 50), (100, 5)])
def test_spread_is_even(of: int, count: int) -> None:
    chosen = spread(of, count)
    assert len(chosen) == min(of, count)
    assert chosen[0] == 0
    if len(chosen) > 1:
        assert chosen[-1] == of - 1
        steps = np.diff(chosen)
        assert steps.max() - steps.min() <= 1


def test_short_names_stay_apart() -> None:
    paths = ["stage0.unit1.bn.se", "stage0.unit2.bn.se", "stage1.unit1.bn.se"]
    assert short_names(paths) == ["stage0.unit1", "stage0.unit2", "stage1.unit1"]
    assert short_names(["a.bn.se", "a.x.bn.se"]) == ["a", "a.x"]
    assert short_names(["bn.se", "x.bn.se"]) == ["bn", "x.bn"]


def test_a_panel_holds_the_classes_means() -> None:
    excitations = make_excitations(widths=(6, 60))
    figure = activation_figure(excitations, [0, 1], [0, 2], channels=50)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["layer0", "layer1"]
    for axes, block, drawn in zip(panels, excitations.blocks, (6, 50), strict=True):
        first, second, total = axes.get_lines()
        channels = spread(block.channels, 50)
        assert len(channels) == drawn
        for line, values in ((first, block.mean[0]), (second, block.mean[2])):
            assert list(line.get_xdata()) == channels
            np.testing.assert_array_equal(line.get_ydata(), values[channels])
        np.testing.assert_array_equal(total.get_ydata(), block.total_mean[channels])
    assert panels[0].get_ylim() == panels[1].get_ylim()
    low, high = panels[0].get_ylim()
    assert low < 0
    assert high > 1


def test_gates_beyond_one_are_in_the_picture() -> None:
    excitations = make_excitations(widths=(6,))
    block = replace(excitations.blocks[0], mean=4 * excitations.blocks[0].mean - 1)
    figure = activation_figure(replace(excitations, blocks=(block,)), [0], [0])
    low, high = figure.axes[0].get_ylim()
    assert low < block.mean.min()
    assert high > block.mean.max()


def test_depth_figures_hold_a_point_a_block() -> None:
    excitations = make_excitations()
    axes = specificity_figure(excitations).axes[0]
    edge, line = axes.get_lines()[:2]
    assert list(line.get_ydata()) == [block.specificity for block in excitations.blocks]
    expected = [float(block.null_specificity.max()) for block in excitations.blocks]
    assert list(edge.get_ydata()) == expected
    low, high = saturation_figure(excitations).axes[0].get_lines()[:2]
    for line, name in ((low, "low"), (high, "high")):
        expected = [100 * float(getattr(block, name).mean()) for block in excitations.blocks]
        assert list(line.get_ydata()) == pytest.approx(expected)


def test_files_are_pictures_and_the_same_each_time() -> None:
    excitations = make_excitations()
    first, second = (specificity_figure(excitations) for _ in range(2))
    png, svg = png_of(first), svg_of(first)
    assert (png, svg) == (png_of(second), svg_of(second))
    with Image.open(io.BytesIO(png)) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (colours == (0x00, 0x72, 0xB2)).all(1).sum() > 200
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_any_name_can_be_drawn() -> None:
    """Formulas, leading underscores, markup, scripts the font lacks, bytes that are no UTF-8."""
    names = ("$\\frac{", "_hidden", "<b>&amp;", "漢字", "x" * 300, "a\nb", "\udcff")
    excitations = make_excitations(names, widths=(5, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = activation_figure(excitations, [0, 1], range(7))
        png, svg = png_of(figure), svg_of(figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:4] == ["$\\frac{", "_hidden", "<b>&amp;", "漢字"]
    assert len(labels[4]) < 40
    assert labels[5:7] == ["a\ufffdb", "\ufffd"]
    assert png.startswith(b"\x89PNG")
    ElementTree.fromstring(svg)


def test_what_has_no_value_leaves_a_gap() -> None:
    excitations = make_excitations(permutations=0)
    mean = excitations.blocks[3].mean.clone()
    mean[1] = torch.nan
    counts = torch.tensor([20, 0, 20])
    last = replace(excitations.blocks[3], mean=mean, counts=counts)
    excitations = replace(excitations, blocks=(*excitations.blocks[:3], last))
    for figure in (activation_figure(excitations, [3], [0, 1]), specificity_figure(excitations)):
        assert png_of(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(("blocks", "channels"), [([], 50), ([0], 1)])
def test_nothing_to_draw_is_told(blocks: list[int], channels: int) -> None:
    with pytest.raises(UserError, match="at least"):
        activation_figure(make_excitations(), blocks, [0], channels=channels)
