"""Networks by name: ours, timm's, and the SE twin of each.

``resnet50`` is a plain network; ``se_resnet50`` is the same with SE attached. ``timm/NAME`` is
timm's network of that name and ``se_timm/NAME`` its twin; timm is imported when such a name is
first built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UserError, nearest
from ..insertion import attach
from ..placement import Reduction
from ..sites import SiteFilter
from . import (
    bn_inception,
    cifar_resnet,
    inception_resnet_v2,
    mobilenet,
    net154,
    preactivation,
    resnet,
    resnext,
    shake_shake,
    shufflenet,
    vgg,
)
from .image_sizes import check_forward

__all__ = [
    "Network",
    "build_plain",
    "check_image_size",
    "create_model",
    "default_min_hidden",
    "list_models",
    "native_input_size",
    "native_normalization",
    "plain_name",
    "split_name",
    "twin_name",
]


@dataclass(frozen=True)
class Network:
    """One row of the table of networks.

    Args:
        build: number of classes → the plain network.
        input_size: (C, H, W) of the images that it was designed for.
        min_hidden: least hidden width of the SE blocks of its twin, unless told otherwise.
    """

    build: Callable[[int], nn.Module]
    input_size: tuple[int, int, int] = (3, 224, 224)
    min_hidden: int = 1


_CIFAR = (3, 32, 32)

_NETWORKS: Mapping[str, Network] = {
    "resnet18": Network(resnet.resnet18),
    "resnet34": Network(resnet.resnet34),
    "resnet50": Network(resnet.resnet50),
    "resnet101": Network(resnet.resnet101),
    "resnet152": Network(resnet.resnet152),
    "resnext50_32x4d": Network(resnext.resnext50_32x4d),
    "resnext101_32x4d": Network(resnext.resnext101_32x4d),
    "net154": Network(net154.net154),
    "vgg16": Network(vgg.vgg16),
    "bn_inception": Network(bn_inception.bn_inception),
    "inception_resnet_v2": Network(inception_resnet_v2.inception_resnet_v2, (3, 299, 299)),
    "mobilenet": Network(mobilenet.mobilenet),
    "shufflenet": Network(shufflenet.shufflenet),
    # With 16, 32 and 64 channels and r = 16 one to four hidden units would be left, and a dead
    # ReLU in a bottleneck of one freezes its gate: these get at least four.
    "resnet20": Network(cifar_resnet.resnet20, _CIFAR, min_hidden=4),
    "resnet56": Network(cifar_resnet.resnet56, _CIFAR, min_hidden=4),
    "resnet110": Network(cifar_resnet.resnet110, _CIFAR, min_hidden=4),
    "resnet164": Network(preactivation.resnet164, _CIFAR),
    "wrn16_8": Network(preactivation.wrn16_8, _CIFAR),
    "shake_shake_26_2x96d": Network(shake_shake.shake_shake_26_2x96d, _CIFAR),
    "shake_shake_29_2x4x64d": Network(shake_shake.shake_shake_29_2x4x64d, _CIFAR),
}

# Twins that people know by a name of their own; ``se_NAME`` is taken too.
_TWINS: Mapping[str, str] = {"net154": "senet154"}


def list_models() -> list[str]:
    """The names of our own networks and their SE twins; any name of timm works besides them.

    >>> list_models()[:3]
    ['bn_inception', 'inception_resnet_v2', 'mobilenet']
    """
    plain = sorted(_NETWORKS, key=_natural)
    return plain + [twin_name(name) for name in plain]


def twin_name(plain: str) -> str:
    """The name of the SE twin of a plain network, of ours or timm's.

    >>> twin_name("resnet50"), twin_name("net154")
    ('se_resnet50', 'senet154')
    """
    return _TWINS.get(plain, f"se_{plain}")


def split_name(name: str) -> tuple[str, bool]:
    """As `plain_name`, for any name; whether there is such a network is not looked up.

    >>> split_name("se_resnet50"), split_name("senet154"), split_name("se_net154")
    (('resnet50', True), ('net154', True), ('net154', True))
    """
    for plain, twin in _TWINS.items():
        if name == twin:
            return plain, True
    return name.removeprefix("se_"), name.startswith("se_")


def plain_name(name: str) -> tuple[str, bool]:
    """The plain network of a name, and whether the name is that of its SE twin.

    Names of timm are split but not looked up.

    Raises:
        UserError: not the name of a network of ours.

    >>> plain_name("se_resnet50"), plain_name("timm/resnet50")
    (('resnet50', True), ('timm/resnet50', False))
    """
    plain, is_se = split_name(name)
    if not plain.startswith("timm/") and plain not in _NETWORKS:
        raise UserError(
            f"unknown model {name!r}; {nearest(name, list_models())}; or timm/NAME, se_timm/NAME"
        )
    return plain, is_se


def native_input_size(name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network was designed for, the same for its twin.

    Raises:
        UserError: unknown name.

    >>> native_input_size("se_resnet20")
    (3, 32, 32)
    """
    plain, _ = plain_name(name)
    if plain in _NETWORKS:
        return _NETWORKS[plain].input_size
    channels, height, width = _timm_configuration(plain).input_size
    return channels, height, width


def native_normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of red, green and blue (of 1) that timm's weights were trained with.

    Raises:
        UserError: not a network of timm's.

    >>> native_normalization("se_timm/inception_v3")
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    configuration = _timm_configuration(plain_name(name)[0])
    return tuple(configuration.mean), tuple(configuration.std)


def check_image_size(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse images that ``model``, the network ``name``, cannot take.

    Args:
        model: the network; it is not touched.
        name: as in `list_models`, or of timm.
        image_size: height and width, in pixels.

    Raises:
        UserError: they are too small for its strides, say, or not of the one size it takes.
    """
    check_forward(model, name, image_size, native_input_size(name)[1])


def default_min_hidden(name: str) -> int:
    """The least hidden width of the SE blocks that `create_model` gives a network.

    >>> default_min_hidden("se_resnet20"), default_min_hidden("se_resnet50")
    (4, 1)
    """
    plain, _ = plain_name(name)
    return _NETWORKS[plain].min_hidden if plain in _NETWORKS else 1


def build_plain(
    name: str, num_classes: int = 1000, *, pretrained: bool = False, drop_path: float = 0.0
) -> nn.Module:
    """The plain network ``name``, of ours or ``timm/NAME``, initialised from the global seed.

    Args:
        name: as in `list_models`, without ``se_``.
        num_classes: logits, at least one.
        pretrained: with timm's weights, which timm downloads.
        drop_path: stochastic depth, the highest probability that a block is left out for an
            image in training; timm's networks have it, not all of them.

    Raises:
        UserError: unknown name or the name of a twin, no class, pretrained weights that do
            not exist or could not be downloaded, or no stochastic depth where it is asked for.
    """
    plain, is_se = plain_name(name)
    if is_se:
        raise UserError(f"{name!r} is not a plain network; its plain twin is {plain!r}")
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a classifier needs at least 1")
    if plain not in _NETWORKS:
        return _build_timm(plain, num_classes, pretrained, drop_path)
    if drop_path:
        raise _no_stochastic_depth(name)
    if pretrained:
        import timm

        known = [f"timm/{ours}" for ours in _NETWORKS if timm.is_model_pretrained(ours)]
        own = f"timm/{name}"
        advice = f"try {own!r}" if own in known else f"timm has some for {', '.join(known)}"
        raise UserError(f"there are no pretrained weights for {name!r}; {advice}")
    return _NETWORKS[plain].build(num_classes)


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    pretrained: bool = False,
    drop_path: float = 0.0,
    placement: str = "standard",
    sites: SiteFilter | Iterable[SiteFilter] | None = None,
    reduction: Reduction = 16,
    hidden: int | None = None,
    min_hidden: int | None = None,
    divisor: int | None = None,
    bias: bool = True,
    gate: str = "sigmoid",
    activation: str = "relu",
    squeeze: str = "avg",
    warm_start: bool = False,
) -> nn.Module:
    """The network ``name``, in training mode, initialised from the global seed.

    ``se_NAME`` is `senet.insertion.attach` on ``NAME``, planned at the network's native input
    size: two networks of a pair are drawn from the same seed alike, up to their blocks.

    Args:
        name: as in `list_models`, or ``timm/NAME`` and ``se_timm/NAME``.
        num_classes: logits, at least one.
        pretrained: with timm's weights (``timm/NAME`` and ``se_timm/NAME`` only).
        drop_path: stochastic depth; see `build_plain`.
        placement, sites, reduction, hidden, divisor, bias, gate, activation, squeeze: which
            blocks an SE twin gets and where; see `senet.placement.plan`.
        min_hidden: least hidden width of a block; None is the network's own
            (`default_min_hidden`: 4 for the CIFAR networks, else 1).
        warm_start: the twin starts by computing what the plain network computes.

    Raises:
        UserError: unknown name, no class, pretrained weights that do not exist or could not be
            downloaded, no stochastic depth where it is asked for, or options of SE blocks that
            make no sense or are given to a plain network.
    """
    plain, is_se = plain_name(name)
    if not is_se:
        _refuse_block_options(
            name,
            placement=(placement, "standard"),
            sites=(sites, None),
            reduction=(reduction, 16),
            hidden=(hidden, None),
            min_hidden=(min_hidden, None),
            divisor=(divisor, None),
            bias=(bias, True),
            gate=(gate, "sigmoid"),
            activation=(activation, "relu"),
            squeeze=(squeeze, "avg"),
            warm_start=(warm_start, False),
        )
    model = build_plain(plain, num_classes, pretrained=pretrained, drop_path=drop_path)
    if not is_se:
        return model
    return attach(
        model,
        input_size=native_input_size(plain),
        placement=placement,
        sites=sites,
        reduction=reduction,
        hidden=hidden,
        min_hidden=default_min_hidden(plain) if min_hidden is None else min_hidden,
        divisor=divisor,
        bias=bias,
        gate=gate,
        activation=activation,
        squeeze=squeeze,
        warm_start=warm_start,
    )


def _refuse_block_options(name: str, **options: tuple[object, object]) -> None:
    """Raise a UserError if any option (its value, its default) of SE blocks was changed."""
    changed = [f"{key}={value!r}" for key, (value, default) in options.items() if value != default]
    if changed:
        raise UserError(
            f"{name!r} has no SE blocks that {', '.join(changed)} could be for; "
            f"its SE twin is {twin_name(name)!r}"
        )


def _natural(name: str) -> tuple[str, int]:
    """A key that sorts resnet20 before resnet110."""
    word = name.rstrip("0123456789")
    return word, int(name[len(word) :] or 0)


def _timm_configuration(name: str) -> Any:
    """timm's pretrained configuration for ``timm/NAME``; UserError for names it does not know."""
    import timm

    architecture, _, tag = name.removeprefix("timm/").partition(".")
    if "/" in architecture or ":" in architecture or not timm.is_model(architecture):
        known = (f"timm/{known}" for known in timm.list_models())
        raise UserError(f"unknown model {name!r}; {nearest(f'timm/{architecture}', known)}")
    try:
        return timm.get_pretrained_cfg(name.removeprefix("timm/"))
    except RuntimeError:
        tags = timm.list_models(f"{architecture}.*", pretrained=True)
        raise UserError(
            f"{name!r}: timm has no weights tagged {tag!r} for {architecture!r}; "
            + nearest(name, (f"timm/{known}" for known in tags))
        ) from None


def _build_timm(name: str, num_classes: int, pretrained: bool, drop_path: float) -> nn.Module:
    import timm

    configuration = _timm_configuration(name)
    if pretrained and not configuration.has_weights:
        raise UserError(f"timm has no pretrained weights for {name!r}; use pretrained=False")
    depth = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        model: nn.Module = timm.create_model(
            name.removeprefix("timm/"), pretrained=pretrained, num_classes=num_classes, **depth
        )
    except OSError as error:  # the hub's errors are among these
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"could not fetch the weights of {name!r}: {reason} (pretrained=False needs none)"
        ) from error
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise _no_stochastic_depth(name) from error
    # Some take the argument and do nothing with it.
    if drop_path and not any(getattr(module, "drop_prob", 0) for module in _drop_paths(model)):
        raise _no_stochastic_depth(name)
    return model


def _drop_paths(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a network that leave a branch out: timm's DropPath and those of its kind."""
    return (module for module in model.modules() if type(module).__name__ == "DropPath")


def _no_stochastic_depth(name: str) -> UserError:
    return UserError(
        f"{name!r} has no stochastic depth that drop_path could be for; of timm's networks many "
        "have, such as 'timm/resnet50' and 'timm/convnext_tiny'"
    )
