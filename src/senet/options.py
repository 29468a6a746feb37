"""What a training run is made of: one flat set of options, on the command line and in YAML."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped,unused-ignore]
from jsonargparse import ArgumentParser

from .errors import UserError
from .models import split_name, twin_name
from .option_ranges import RANGES
from .parse_errors import in_one_line
from .yaml_values import NULLS, in_yaml, values_yaml

__all__ = [
    "SE_OPTIONS",
    "TrainOptions",
    "changed_option",
    "deciding",
    "in_yaml",
    "options_of",
    "options_yaml",
    "read_options",
    "typed_values",
]


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run.

    Args:
        model: Network: resnet20, se_resnet50, … (se_NAME is NAME with SE attached), timm/NAME or
            se_timm/NAME for any of timm's.
        data: Data set: digits (built in), cifar10, cifar100, fashion_mnist, … or a folder of
            images, one sub-folder a class; or tar shards: a folder that `senet pack` made, or a
            pattern in quotes, 'DIR/train-{0000..0099}.tar'.
        data_root: Where downloaded data sets are kept.
        download: Fetch a data set that is not there yet.
        val_data: Pattern of the shards to validate on, where data is a pattern of those to train
            on; null takes those beside them that `senet pack` made, else holds val_fraction out.
        image_size: Height and width the network sees, in pixels; null takes the data set's own,
            for a folder the network's (32 for resnet20, 224 for resnet50).
        val_fraction: Share of the images held out for validation where a data set has no
            validation part of its own.
        augment: Random crop and flip of the training images, as fits the data set.
        rand_augment: Magnitude, 0 to 30, of RandAugment: two random distortions of each training
            image; null leaves it out.
        erase: Probability that a random rectangle of a training image is erased.
        repeats: Differently augmented versions of an image in a batch; an epoch is as long as
            without, of as many times fewer images.
        batch_size: Images in a batch, on each device.
        workers: Processes that load images; 0 loads them in the training process.
        load_timeout: Seconds that a batch may take to come from the workers before training
            stops and names the files they are at; null waits for ever.
        cache: Hold decoded images in memory once they were read; small sets only.
        epochs: Passes over the training images.
        seed: Decides initial weights, order of the images, augmentation and held-out images.
        optimizer: sgd or adamw.
        lr: Highest learning rate; null is 0.1 for sgd, 0.001 for adamw.
        momentum: Momentum of sgd.
        nesterov: Nesterov's form of momentum.
        weight_decay: Weight decay; adamw decouples it from the gradient.
        decay_norms: Decay biases and the parameters of norms too, as the paper does.
        schedule: cosine falls to zero over the run; step multiplies by gamma at each milestone.
        milestones: Epochs after which schedule step lowers the learning rate; [] keeps it constant.
        gamma: Factor of each milestone.
        warmup_epochs: Epochs, also fractions of one, over which the learning rate rises linearly
            to lr first.
        warmup_factor: The part of lr that warm-up begins at.
        label_smoothing: Probability mass spread over all classes in the training loss.
        mixup: Alpha of mixup, the mixing of images and their labels in a training batch, 0.1 to
            1 as a rule; 0 leaves it out.
        cutmix: Alpha of CutMix, which puts a rectangle of another image in, 1 as a rule; 0
            leaves it out. With mixup too, each batch gets one of the two.
        mix_prob: Probability that a batch is mixed.
        clip_norm: Largest norm of the gradient, longer ones are scaled down; null leaves them.
        accumulate: Batches whose gradients make up one optimizer step; the schedule counts steps.
        ema_decay: Decay of a moving average of the weights, 0.999 or 0.9999 as a rule, which is
            what is validated, saved and exported then; null keeps none.
        drop_path: Stochastic depth, the highest probability that a block is left out for an
            image, where the network has it (many of timm/NAME and se_timm/NAME).
        layer_decay: Learning rate of a layer as a part of that of the next one, up to the
            classifier's, 0.75 as a rule for pretrained networks; null gives all the same.
        pretrained: Start from timm's weights (timm/NAME and se_timm/NAME only); images are then
            normalised as those weights were trained.
        init: Run directory whose weights the network starts from; a plain run's fit its SE twin
            too, and with warm_start it then begins with just that run's accuracy. Images are
            normalised as that run's.
        placement: Where in a residual block SE goes: standard, pre, post, identity or inner.
        sites: Only these places get SE: globs over module paths or stage numbers, with commas
            between them (as `senet plan` shows them); null is all.
        reduction: SE's reduction ratio r, or one for each stage or glob, {4: 8, 5: 4}; places
            that none of these fits have 16.
        hidden: Width of SE's hidden layer itself, instead of reduction.
        min_hidden: Least width of SE's hidden layer; null is the network's own (4 for the thin
            CIFAR networks, where one dead ReLU could freeze a gate, else 1).
        divisor: Round the width of SE's hidden layer to a multiple of this, as timm does; null
            rounds down.
        bias: Biases in SE's two layers.
        gate: Last function of SE: sigmoid, hard_sigmoid, tanh or relu.
        activation: Function between SE's two layers: relu, silu, gelu or hard_swish.
        squeeze: What SE makes of a channel: avg, max, or none (a gate for every position).
        se_lr: Learning rate of the SE blocks; null is the network's. Given, layer_decay leaves
            it as it is.
        warm_start: SE starts out as the identity, so that the network begins as its plain twin.
        precision: Arithmetic of training, in Lightning's words.
        compile: Train through torch.compile; the saved weights are named as without.
        accelerator: auto, cpu, gpu, mps, …; auto takes the fastest there is.
        devices: How many devices to train on, on each machine; auto takes all.
        nodes: How many machines train together, each with as many devices.
        strategy: How several devices share a network, in Lightning's words: auto (ddp where there
            are several), ddp, ddp_find_unused_parameters_true for networks that leave parts out,
            or fsdp, which shares the weights out too.
        sync_batchnorm: Norms take the batches of all devices for one, so that N devices train as
            one with N times the batch.
        peer_timeout: Seconds that a process waits for the others of its run; one that is silent
            for longer ends the run.
        threads: CPU threads of a training process; null is the cores, divided among those of
            several devices. Small networks on a busy machine are many times faster with 1.
        twin: Train the network without SE too, in OUT/twin, and compare the two.
        tensorboard: Write the metrics for TensorBoard too, in OUT/tensorboard.
        limit_batches: Train and validate on no more than this many batches an epoch, to try
            things out; null uses all.
    """

    model: str = "se_resnet20"
    data: str = "digits"
    data_root: str = "~/.cache/senet/data"
    download: bool = True
    val_data: str | None = None
    image_size: int | None = None
    val_fraction: float = 0.2
    augment: bool = True
    rand_augment: int | None = None
    erase: float = 0.0
    repeats: int = 1
    batch_size: int = 64
    workers: int = 0
    load_timeout: float | None = None
    cache: bool = False
    epochs: int = 4
    seed: int = 7
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    decay_norms: bool = True
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = (30, 60, 90)
    gamma: float = 0.1
    warmup_epochs: float = 0.5
    warmup_factor: float = 0.1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    drop_path: float = 0.0
    layer_decay: float | None = None
    pretrained: bool = False
    init: str | None = None
    placement: str = "standard"
    sites: str | int | None = None
    reduction: float | dict[str, float] = 16
    hidden: int | None = None
    min_hidden: int | None = None
    divisor: int | None = None
    bias: bool = True
    gate: str = "sigmoid"
    activation: str = "relu"
    squeeze: str = "avg"
    se_lr: float | None = None
    warm_start: bool = False
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    compile: bool = False
    accelerator: str = "auto"
    devices: int | Literal["auto"] = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = "auto"
    sync_batchnorm: bool = False
    peer_timeout: float = 600.0
    threads: int | None = None
    twin: bool = False
    tensorboard: bool = False
    limit_batches: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if value is None and "None" not in kind:
                raise UserError(f"{field.name} is null, but must have a value")
            if value in NULLS and "None" in kind:  # as on the command line and in YAML
                object.__setattr__(self, field.name, None)
            if kind == "float":  # 16 and 16.0 are one value, and are written alike
                object.__setattr__(self, field.name, float(value))
        object.__setattr__(self, "reduction", _one_or_each(self.reduction))
        if self.sites is not None:
            object.__setattr__(self, "sites", str(self.sites))
        for names, fits, wanted in RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise UserError(f"{name} is {in_yaml(value)}, but must be {wanted}")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise UserError("nesterov needs a momentum above 0; turn it off or give a momentum")
        if self.se_lr is not None and not split_name(self.model)[1]:
            raise UserError(
                f"{self.model!r} has no SE blocks that se_lr={self.se_lr} could be for; "
                f"its SE twin is {twin_name(self.model)!r}"
            )

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, also where ``lr`` leaves it to the optimizer."""
        return self.lr if self.lr is not None else {"sgd": 0.1, "adamw": 1e-3}[self.optimizer]

    @property
    def site_filters(self) -> tuple[str | int, ...] | None:
        """``sites`` as `senet.plan` takes them; None for all."""
        if self.sites is None:
            return None
        return tuple(_stage_or_glob(word.strip()) for word in str(self.sites).split(","))

    @property
    def reductions(self) -> float | dict[str | int, float]:
        """``reduction`` as `senet.plan` takes it."""
        if not isinstance(self.reduction, dict):
            return self.reduction
        return {_stage_or_glob(key): value for key, value in self.reduction.items()}

    def without_se(self) -> TrainOptions:
        """The same run of the network without SE: every option of SE has its default."""
        untouched = TrainOptions()
        plain = {name: getattr(untouched, name) for name in (*SE_OPTIONS, "twin")}
        return replace(self, model=split_name(self.model)[0], **plain)


SE_OPTIONS = (
    *("placement", "sites", "reduction", "hidden", "min_hidden", "divisor", "bias"),
    *("gate", "activation", "squeeze", "se_lr", "warm_start"),
)
"""The options that only a network with SE has a use for."""


def _one_or_each(reduction: float | dict[str, float]) -> float | dict[str, float]:
    if not isinstance(reduction, dict):
        return float(reduction)
    return {str(key): float(value) for key, value in reduction.items()}  # YAML's 4 is a number


def _stage_or_glob(word: str) -> str | int:
    return int(word) if word.isdecimal() else word


# What a resumed run may be given anew, because the result does not depend on it.
_FREE = frozenset(
    (
        *("data_root", "download", "workers", "load_timeout", "cache", "accelerator", "twin"),
        *("tensorboard", "peer_timeout"),
    ),
)

# What was added since the first version, whose runs have not noted it. By its default each does
# what was done before there was the option, so that older runs go on and evaluate as they were.
_LATER = frozenset(
    (
        *("nodes", "strategy", "sync_batchnorm", "peer_timeout"),
        *("val_data", "load_timeout", "cache"),
        *("rand_augment", "erase", "repeats", "mixup", "cutmix", "mix_prob", "accumulate"),
        *("ema_decay", "drop_path", "layer_decay", "compile"),
    )
)


def changed_option(old: TrainOptions, new: TrainOptions) -> str | None:
    """The first option in which ``new`` would lead to another result than ``old``, or None."""
    before, after = deciding(old), deciding(new)
    return next((name for name in before if before[name] != after[name]), None)


def deciding(options: TrainOptions) -> dict[str, str]:
    """The options that the result depends on, each as it is written in YAML."""
    names = (field.name for field in fields(TrainOptions) if field.name not in _FREE)
    return {name: in_yaml(getattr(options, name)) for name in names}


def options_yaml(options: TrainOptions) -> str:
    """The options as YAML that `read_options` and ``senet train --config`` take."""
    return values_yaml(asdict(options))


def read_options(path: Path, *, whole: bool = False) -> TrainOptions:
    """The options in a YAML file; those it leaves out have their defaults.

    Args:
        path: the file.
        whole: it is the config.yaml of a run, which leaves nothing out but options that there
            were not yet when it was written.

    Raises:
        UserError: the file cannot be read, or names an unknown option, or an option has a value
            of the wrong type; an option is missing from a file that is to be whole.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise UserError("expected lines of the form `option: value`")
        expected = [field.name for field in fields(TrainOptions) if field.name not in _LATER]
        missing = [name for name in expected if name not in values]
        if whole and missing:
            raise UserError(
                f"cut short or edited, {', '.join(missing[:3])}{', …' * (len(missing) > 3)} "
                f"{'is' if len(missing) == 1 else 'are'} missing; restore it from a copy"
            )
        return options_of(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def options_of(values: Mapping[str, Any]) -> TrainOptions:
    """The options with these values, as YAML has them; those left out have their defaults.

    Raises:
        UserError: an unknown option, or a value of the wrong type or out of range.
    """
    return TrainOptions(**typed_values(values))


def typed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every option's value, of its type, where ``values`` has some, as YAML has them.

    Raises:
        UserError: an unknown option, or a value of the wrong type.
    """
    try:
        typed: dict[str, Any] = _parser().parse_object(dict(values)).as_dict()
    except argparse.ArgumentError as error:
        known = [field.name for field in fields(TrainOptions)]
        raise UserError(in_one_line(error, known)) from None
    # The parser reads a text once more as YAML, where '#' is none: what was one stays it.
    texts = {name: values[name] for name in _OPTIONAL_TEXTS & values.keys()}
    return typed | {name: text for name, text in texts.items() if isinstance(text, str)}


_OPTIONAL_TEXTS = {field.name for field in fields(TrainOptions) if field.type == "str | None"}


@cache  # a sixth of a second, and a sweep asks for every variant
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainOptions)
    return parser
