"""senet.evaluation: counts against counting by hand, and networks that cannot be evaluated."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from senet.data import DataOptions, load_data, val_loader
from senet.errors import UserError
from senet.evaluation import Evaluation, evaluate, predict

NAMES = [f"class {n}" for n in range(9)]
Batches = list[tuple[Tensor, Tensor]]


def batches_of(logits: Tensor, labels: Tensor, size: int) -> Batches:
    """Images (N, C, 1, 1) whose pixels are the logits, for a network that flattens them."""
    images = logits[:, :, None, None]
    return list(zip(images.split(size), labels.split(size), strict=True))


@given(
    images=st.integers(1, 40),
    classes=st.integers(2, 9),
    size=st.integers(1, 12),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_counting(images: int, classes: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    names = NAMES[:classes]
    result = evaluate(nn.Flatten(), batches_of(logits, labels, size), classes=names)

    confusion = [[0] * classes for _ in range(classes)]
    top5 = 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(classes), key=lambda c: -row[c])
        confusion[label][ranking[0]] += 1
        top5 += label in ranking[:5]
    assert result.confusion == confusion
    assert result.images == images
    assert result.top1 == sum(confusion[c][c] for c in range(classes)) / images
    assert result.top5 == (top5 / images if classes > 5 else None)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), 1e-4)
    assert result.images_per_second > 0
    for c, name in enumerate(names):
        count = sum(confusion[c])
        expected = confusion[c][c] / count if count else None
        assert result.per_class[name] == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("classes", "told"), [(5, False), (6, True)])
def test_a_top_five_of_all_classes_tells_nothing(classes: int, told: bool) -> None:
    logits, labels = torch.randn(10, classes), torch.arange(10) % classes
    result = evaluate(nn.Flatten(), batches_of(logits, labels, 4), classes=NAMES[:classes])
    document = json.loads(result.to_json())
    assert "top5" in document
    assert (document["top5"] is not None) == told


def test_json_has_every_number() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 2.0, -1.0], [2.0, 0.0, -1.0]])
    result = evaluate(
        nn.Flatten(), batches_of(logits, torch.tensor([0, 1, 1]), 2), classes=['"', "ü", ""]
    )
    document = json.loads(result.to_json())
    assert document["top1"] == pytest.approx(2 / 3)
    assert document["per_class"] == {'"': 1.0, "ü": 0.5, "": None}
    assert document["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert Evaluation(**document) == result


def network(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )


def test_a_network_on_the_digits() -> None:
    options = DataOptions(batch_size=100)
    data = load_data(options)
    model = network()
    loader = val_loader(data, options)
    result = evaluate(model, loader, classes=data.classes)
    assert result.images == 359
    assert result == result_of_same(evaluate(model, loader, classes=data.classes), result)
    with torch.no_grad():
        images = torch.stack([image for image, _ in data.val])
        best = model.eval()(images).argmax(dim=1)
    assert result.top1 == pytest.approx(
        sum(int(b) == data.val[i][1] for i, b in enumerate(best)) / 359
    )


def result_of_same(result: Evaluation, other: Evaluation) -> Evaluation:
    """``result`` but for its speed, which no two evaluations share."""
    from dataclasses import replace

    return replace(result, images_per_second=other.images_per_second)


def test_every_module_gets_its_own_mode_back() -> None:
    model = network().train()
    images = torch.randn(4, 3, 8, 8)
    model(images)
    model[1].eval()  # frozen
    statistics = model[1].get_buffer("running_mean").clone()
    evaluate(model, [(images, torch.arange(4))], classes=[str(n) for n in range(10)])
    predict(model, images, classes=[str(n) for n in range(10)])
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert torch.equal(model[1].get_buffer("running_mean"), statistics)
    with pytest.raises(UserError, match="label 10"):
        evaluate(
            model, [(images, torch.tensor([1, 2, 3, 10]))], classes=[str(n) for n in range(10)]
        )
    assert model.training


def test_the_bar_is_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    batches = batches_of(torch.randn(6, 3), torch.arange(6) % 3, 2)
    quiet = evaluate(nn.Flatten(), batches, classes=NAMES[:3])
    assert capfd.readouterr() == ("", "")
    shown = evaluate(nn.Flatten(), iter(batches), classes=NAMES[:3], progress=True)
    assert shown.confusion == quiet.confusion
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite(value: float) -> None:
    logits = torch.randn(6, 3)
    logits[4, 1] = value
    with pytest.raises(UserError, match="batch 2 is not finite") as error:
        evaluate(nn.Flatten(), batches_of(logits, torch.zeros(6).long(), 2), classes=NAMES[:3])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not finite"):
        predict(nn.Flatten(), logits[:, :, None, None], classes=NAMES[:3])


def test_what_does_not_fit() -> None:
    batches = batches_of(torch.randn(4, 3), torch.arange(4) % 3, 4)
    for names, message in (
        (NAMES[:4], r"\(4, 3\); \(images, 4\)"),
        (["a", "b", "a"], "'a' is there twice"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(nn.Flatten(), batches, classes=names)
    with pytest.raises(UserError, match="no images"):
        evaluate(nn.Flatten(), [], classes=NAMES[:3])
    with pytest.raises(UserError, match="label -1"):
        evaluate(nn.Flatten(), [(batches[0][0], torch.tensor([0, -1, 1, 2]))], classes=NAMES[:3])


@given(
    count=st.integers(0, 70),
    classes=st.integers(1, 9),
    top=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_predictions_are_ranked(count: int, classes: int, top: int, seed: int) -> None:
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    images = (row[:, None, None] for row in logits)
    results = predict(nn.Flatten(), images, classes=NAMES[:classes], top=top)
    assert len(results) == count
    for row, ranking in zip(logits, results, strict=True):
        chances = row.softmax(dim=0).tolist()
        assert len(ranking) == min(top, classes)
        assert [chance for _, chance in ranking] == pytest.approx(
            sorted(chances, reverse=True)[: len(ranking)]
        )
        for name, chance in ranking:
            assert chances[NAMES.index(name)] == pytest.approx(chance)


def test_images_of_several_sizes_and_few_at_a_time() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    alive = 0

    def images() -> Iterator[Tensor]:
        nonlocal alive
        for number in range(100):
            alive += 1
            yield torch.full((3, 4 + number % 2, 4), float(number)) * torch.tensor(
                [1.0, -1.0, 0.0]
            ).view(3, 1, 1)

    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    results = predict(model, images(), classes=["a", "b", "c"], top=1)
    assert alive == len(results) == 100
    assert [ranking[0][0] for ranking in results[1:]] == ["a"] * 99
    assert max(seen) <= 32


def test_top_must_be_positive() -> None:
    with pytest.raises(UserError, match="top is 0"):
        predict(nn.Flatten(), [torch.zeros(3, 1, 1)], classes=NAMES[:3], top=0)
