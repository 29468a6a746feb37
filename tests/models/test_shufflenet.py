from __future__ import annotations

import torch

from senet.models.shufflenet import ShuffleUnit, StridedShuffleUnit, shufflenet


def test_stages_are_the_papers_table_1() -> None:
    shapes = []
    with torch.device("meta"):
        model = shufflenet().eval()
    for stage in (model.pool, model.stage3, model.stage4, model.stage5):
        stage.register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape[1:])))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert shapes == [(24, 56, 56), (240, 28, 28), (480, 14, 14), (960, 7, 7)]
    assert [len(stage) for stage in (model.stage3, model.stage4, model.stage5)] == [4, 8, 4]


def test_only_the_first_convolution_of_the_first_unit_is_not_grouped() -> None:
    with torch.device("meta"):
        model = shufflenet()
    units = [*model.stage3, *model.stage4, *model.stage5]
    assert [unit.branch.reduce.conv.groups for unit in units] == [1] + [3] * 15
    assert {unit.branch.increase.conv.groups for unit in units} == {3}
    for unit in units:
        depthwise = unit.branch.depthwise.conv
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels


def test_bottlenecks_have_a_quarter_of_the_units_channels() -> None:
    with torch.device("meta"):
        model = shufflenet()
    for stage, width in ((model.stage3, 240), (model.stage4, 480), (model.stage5, 960)):
        assert {unit.branch.reduce.conv.out_channels for unit in stage} == {width // 4}


def test_shuffle_takes_from_each_group_in_turn() -> None:
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert ShuffleUnit(12).branch.shuffle(x).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_units_add_or_concatenate() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 12, 5, 4)
    unit = ShuffleUnit(12).eval()
    assert torch.equal(unit(x), (unit.branch(x) + x).relu())
    strided = StridedShuffleUnit(12, 24).eval()
    y = strided(x)
    assert y.shape == (2, 24, 3, 2)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 2, 1)
    assert torch.equal(y, torch.cat((pooled, strided.branch(x)), 1).relu())


def test_there_is_no_activation_after_the_depthwise_convolution() -> None:
    torch.manual_seed(0)
    branch = ShuffleUnit(12).eval().branch
    x = torch.randn(2, 12, 5, 4)
    y = branch.shuffle(branch.reduce(x).relu())
    assert torch.equal(branch(x), branch.increase(branch.depthwise(y)))
