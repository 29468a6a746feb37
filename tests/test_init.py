"""--init: an SE network that starts from a plain run, and one that cannot."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from generated import make_image_folder

from senet import UserError, create_model, load
from senet.catalogue import IMAGENET_MEAN, IMAGENET_STD
from senet.checkpoints import LAST, RunRecord, read_record
from senet.data import DataOptions, load_data
from senet.optimization import make_optimizer
from senet.options import TrainOptions
from senet.run_network import build, normalised_as_trained, start_from
from senet.runs import CARD, read_card
from senet.training import train

PLAIN = TrainOptions(
    model="resnet20", data="digits", image_size=8, batch_size=32, epochs=1, limit_batches=4
)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    train(PLAIN, out, say=lambda line: None)
    return out


def test_warm_start_from_a_plain_run_begins_where_it_ended(plain_run, tmp_path):
    options = replace(PLAIN, model="se_resnet20", init=str(plain_run), warm_start=True, se_lr=0.01)
    model = build(options, num_classes=10).eval()
    told = start_from(model, plain_run, options.model, num_classes=10)
    top1 = read_card(plain_run).top1
    assert told == (
        f"starting from resnet20 in {plain_run}, which had top-1 {top1:.2%} on its held-out images"
    )
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(model(x), load(plain_run)(x))
    # An epoch whose steps are too small for float32 moves BatchNorm's statistics only: from the
    # same place, the network with SE and the one without come to the same.
    still = replace(options, lr=1e-30, se_lr=1e-30, momentum=0.0, nesterov=False, weight_decay=0.0)
    lines = []
    ours, plain = (
        train(each, tmp_path / each.model, say=lines.append).best
        for each in (still, replace(still, model="resnet20", warm_start=False, se_lr=None))
    )
    assert lines.count(told) == 2
    assert ours.val_top1 == plain.val_top1
    assert (ours.train_loss, ours.val_loss) == pytest.approx(
        (plain.train_loss, plain.val_loss), rel=1e-5
    )


def test_the_blocks_have_a_learning_rate_of_their_own():
    options = replace(PLAIN, model="se_resnet20", lr=0.1, se_lr=0.5, decay_norms=False)
    model = create_model("se_resnet20", num_classes=10)
    groups = make_optimizer(model, options).param_groups
    blocks = {id(p) for name, p in model.named_parameters() if ".se." in name}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.5 if id(parameter) in blocks else 0.1)
            assert group["weight_decay"] == (options.weight_decay if parameter.ndim > 1 else 0)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "se_resnet56"},
            r"holds resnet20, whose weights do not fit se_resnet56: it lacks "
            r"'stage0\.[^']+', '[^']+' and \d+ more$",
        ),
        ({"model": "resnet18"}, "do not fit resnet18: it lacks .* has another shape for "),
        ({"data": "FOLDER"}, r"tells 10 classes apart \(of digits\), but the data here has 2"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(plain_run, tmp_path, changes, message):
    options = replace(PLAIN, model="se_resnet20", init=str(plain_run))
    if "data" in changes:
        changes = {"data": str(make_image_folder(tmp_path / "set", per_class=2, size=(8, 8)))}
    with pytest.raises(UserError, match=message) as caught:
        train(replace(options, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "run").exists()


def test_se_blocks_of_other_options_are_refused(plain_run, tmp_path):
    options = replace(PLAIN, model="se_resnet20", init=str(plain_run), warm_start=True)
    train(options, tmp_path / "se", say=lambda line: None)
    other = replace(options, init=str(tmp_path / "se"), warm_start=False)
    with pytest.raises(UserError, match="SE blocks of other options"):
        train(other, tmp_path / "other", say=lambda line: None)
    with pytest.raises(UserError, match="holds se_resnet20, which has SE, but resnet20 has none"):
        train(replace(PLAIN, init=str(tmp_path / "se")), tmp_path / "other")
    with pytest.raises(UserError, match="twin needs a plain run"):
        train(replace(other, warm_start=True, twin=True), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_twin_that_cannot_begin_is_refused_when_the_first_is_resumed(plain_run, tmp_path):
    """Before the first of the two is trained on."""
    options = replace(PLAIN, model="se_resnet20", init=str(plain_run), warm_start=True)
    train(options, tmp_path / "se", say=lambda line: None)
    half = replace(options, init=str(tmp_path / "se"), epochs=2)

    def stop(line):
        if "epoch 1/2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(half, tmp_path / "run", say=stop)
    with pytest.raises(UserError, match="twin needs a plain run"):
        train(replace(half, twin=True), tmp_path / "run", resume=True, say=lambda line: None)
    assert len(read_record(tmp_path / "run" / LAST).rows) == 1


def test_a_pair_goes_on_without_the_run_it_started_from(plain_run, tmp_path):
    """Once both have an epoch of their own."""
    shutil.copytree(plain_run, tmp_path / "plain")
    options = replace(PLAIN, model="se_resnet20", init=str(tmp_path / "plain"), epochs=2, twin=True)
    lines = []

    def stop(line):
        lines.append(line)
        if len([each for each in lines if "epoch 1/2" in each]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "run", say=stop)
    shutil.rmtree(tmp_path / "plain")
    assert len(train(options, tmp_path / "run", resume=True, say=lambda line: None).rows) == 2


def test_images_are_normalised_as_the_weights_were_trained(plain_run, tmp_path):
    """Also by a run that goes on when the one that it started from is gone."""
    shutil.copytree(plain_run, tmp_path / "plain")
    names = [str(digit) for digit in range(10)]
    folder = make_image_folder(tmp_path / "set", per_class=4, size=(8, 8), classes=names)
    options = replace(PLAIN, data=str(folder), epochs=2, batch_size=8)

    def stop(line):
        if "epoch 1/2" in line:
            raise KeyboardInterrupt

    def colours(out):
        card = read_card(out)
        return card.mean, card.std

    started = replace(options, init=str(tmp_path / "plain"))
    with pytest.raises(KeyboardInterrupt):
        train(started, tmp_path / "run", say=stop)
    shutil.rmtree(tmp_path / "plain")
    (tmp_path / "run" / CARD).write_text("{")  # and its own card is damaged
    train(started, tmp_path / "run", resume=True, say=lambda line: None)
    train(options, tmp_path / "own", say=lambda line: None)
    assert colours(tmp_path / "run") == colours(plain_run)
    assert colours(tmp_path / "own") == (IMAGENET_MEAN, IMAGENET_STD)
    loading = DataOptions(data=str(folder), image_size=8)
    as_trained = normalised_as_trained(
        loading, started, tmp_path / "run", read_record(tmp_path / "run" / LAST)
    )
    plain, ours = (load_data(each).val[0][0] for each in (loading, as_trained))
    assert not torch.equal(plain, ours)


def test_a_run_of_an_earlier_version_goes_on_with_its_images_as_they_were(plain_run, tmp_path):
    """Its record does not say how they are normalised, its card does; a twin goes by the other."""
    run, options = tmp_path / "run", replace(PLAIN, pretrained=True, model="timm/mobilevit_s")
    shutil.copytree(plain_run, run)
    record = read_record(run / LAST)
    older = replace(record, data=replace(record.data, mean=None, std=None))
    card = read_card(run)
    for known in (record, older):
        assert normalised_as_trained(DataOptions(), options, run, known).mean == card.mean
    (run / CARD).unlink()
    assert normalised_as_trained(DataOptions(), options, run, record).mean == card.mean
    assert normalised_as_trained(DataOptions(), options, run, older).mean is None
    nothing = RunRecord(())
    assert normalised_as_trained(DataOptions(), options, run, nothing).mean == (0.0, 0.0, 0.0)
    twin = normalised_as_trained(
        DataOptions(), options, run / "twin", nothing, beside=(run, record)
    )
    assert (twin.mean, twin.std) == (card.mean, card.std)


def test_what_a_plan_says_of_a_site_makes_it_no_other(plain_run, tmp_path):
    options = replace(PLAIN, model="se_resnet20", init=str(plain_run), warm_start=True)
    train(options, tmp_path / "se", say=lambda line: None)
    card = json.loads((tmp_path / "se" / CARD).read_text())
    card["plan"]["sites"][0]["note"] = "as an earlier version put it"
    (tmp_path / "se" / CARD).write_text(json.dumps(card))
    model = build(options, num_classes=10)
    assert "starting from" in start_from(model, tmp_path / "se", options.model, num_classes=10)


@pytest.mark.parametrize(
    ("model", "pretrained", "mean"),
    [
        ("se_timm/inception_resnet_v2", True, (0.5, 0.5, 0.5)),
        ("timm/mobilevit_s", True, (0.0, 0.0, 0.0)),
        ("timm/resnet50", True, IMAGENET_MEAN),
        ("se_timm/inception_resnet_v2", False, None),
        ("resnet50", True, None),  # which has none, and is refused when it is built
    ],
)
def test_timms_weights_have_a_normalisation_of_their_own(tmp_path, model, pretrained, mean):
    options = replace(PLAIN, model=model, pretrained=pretrained)
    found = normalised_as_trained(DataOptions(), options, tmp_path / "none", RunRecord(()))
    assert found.mean == mean
