"""The figures that the paper prints, row by row, and the networks of ours that they are of.

Hu, Shen, Sun, Albanie, Wu, *Squeeze-and-Excitation Networks* (IEEE TPAMI 2020): errors in per
cent, one crop; what it calls FLOPs are multiply-adds. Figures are texts, so that 3.90 keeps the
digits it was printed with. Nothing here is ours or measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PUBLISHED", "PublishedRow", "PublishedTable"]


@dataclass(frozen=True)
class PublishedRow:
    """One row; an empty text is a figure that the table does not print.

    Args:
        label: what the row is called.
        network: the name in `senet.models`.
        top1, top5: error in per cent.
        macs: multiply-adds for one image, in the table's unit.
        parameters: in millions.
        file: size of the released weights in MiB.
        options: of `senet.models.create_model`, for this row.
        variants: what the recipes in ``recipes/ablations`` call this row of an ablation. ``plain``
            and ``se`` are in several tables, each other name is in one.
        macs_remark, parameters_remark, file_remark: why the printed figure is not met, where no
            rule of `senet.tables` says it.
    """

    label: str
    network: str
    top1: str = ""
    top5: str = ""
    macs: str = ""
    parameters: str = ""
    file: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    macs_remark: str = ""
    parameters_remark: str = ""
    file_remark: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """One table.

    Args:
        key: what `senet tables` calls it.
        title: in one line.
        rows: from top to bottom.
        unit: of the multiply-adds, "G" or "M".
        num_classes: of the data that the errors are of.
        data: name of the data set that results are shown of; None shows those of any.
        decimals: of our multiply-adds (in ``unit``) and parameters (in millions).
        ablation: rows are variants of one network; results of any network are shown beside them.
        remarks: printed below the table.
    """

    key: str
    title: str
    rows: tuple[PublishedRow, ...]
    unit: str = "G"
    num_classes: int = 1000
    data: str | None = None
    decimals: tuple[int, int] = (3, 2)
    ablation: bool = False
    remarks: tuple[str, ...] = ()


def _se(
    label: str,
    network: str,
    top1: str,
    top5: str = "",
    macs: str = "",
    parameters: str = "",
    macs_remark: str = "",
) -> PublishedRow:
    """A twin as in the journal's tables, whose blocks have no biases."""
    return PublishedRow(
        *(label, network, top1, top5, macs, parameters),
        options={"bias": False},
        macs_remark=macs_remark,
    )


_IRV2 = (
    "counted is the network known by the name, TF-slim's with 10, 20 and 10 modules, at 299×299, "
    "for which the NASNet paper prints 13.2; with 5, 20 and 5 it counts 11.756 and 11.763, which "
    "cut off after the printed digits are these figures, but nothing says that it has so few"
)

_TABLE_2 = PublishedTable(
    "2",
    "Table 2: ImageNet, plain networks (re-implemented) and their SE twins",
    (
        PublishedRow("ResNet-50", "resnet50", "24.80", "7.48", "3.86"),
        _se("SE-ResNet-50", "se_resnet50", "23.29", "6.62", "3.87"),
        PublishedRow("ResNet-101", "resnet101", "23.17", "6.52", "7.58"),
        _se("SE-ResNet-101", "se_resnet101", "22.38", "6.07", "7.60"),
        PublishedRow("ResNet-152", "resnet152", "22.42", "6.34", "11.30"),
        _se("SE-ResNet-152", "se_resnet152", "21.57", "5.73", "11.32"),
        PublishedRow("ResNeXt-50 (32×4d)", "resnext50_32x4d", "22.11", "5.90", "4.24"),
        _se("SE-ResNeXt-50 (32×4d)", "se_resnext50_32x4d", "21.10", "5.49", "4.25"),
        PublishedRow("ResNeXt-101 (32×4d)", "resnext101_32x4d", "21.18", "5.57", "7.99"),
        _se("SE-ResNeXt-101 (32×4d)", "se_resnext101_32x4d", "20.70", "5.01", "8.00"),
        PublishedRow("VGG-16 (BN)", "vgg16", "27.02", "8.81", "15.47"),
        _se("SE-VGG-16 (BN)", "se_vgg16", "25.22", "7.70", "15.48"),
        PublishedRow("BN-Inception", "bn_inception", "25.38", "7.89", "2.03"),
        _se("SE-BN-Inception", "se_bn_inception", "24.23", "7.14", "2.04"),
        PublishedRow(
            *("Inception-ResNet-v2", "inception_resnet_v2", "20.37", "5.21", "11.75"),
            macs_remark=_IRV2,
        ),
        _se(
            *("SE-Inception-ResNet-v2", "se_inception_resnet_v2", "19.80", "4.79", "11.76"),
            macs_remark=_IRV2,
        ),
    ),
    remarks=(
        "ResNets have the stride of a stage in its first 1×1 convolution; with the stride in the "
        "3×3, as in later versions, ResNet-50 counts 4.09.",
    ),
)

_TABLE_3 = PublishedTable(
    "3",
    "Table 3: ImageNet, networks for mobile devices (ShuffleNet 1×, g = 3)",
    (
        PublishedRow("MobileNet", "mobilenet", "28.4", "9.4", "569", "4.2"),
        _se("SE-MobileNet", "se_mobilenet", "25.3", "7.7", "572", "4.7"),
        PublishedRow("ShuffleNet", "shufflenet", "32.6", "12.5", "140", "1.8"),
        _se("SE-ShuffleNet", "se_shufflenet", "31.0", "11.1", "142", "2.4"),
    ),
    unit="M",
    decimals=(2, 2),
    remarks=(
        "SE-MobileNet has a block after each pair of a depthwise and a pointwise convolution; one "
        "after every convolution would be 5.06M parameters. SE-ShuffleNet has one on each branch, "
        "also in the strided units that concatenate.",
    ),
)


def _cifar(key: str, classes: int, pairs: tuple[tuple[str, str, str, str], ...]) -> PublishedTable:
    blocks: dict[str, object] = {"bias": False, "min_hidden": 1}
    rows = []
    for label, network, plain, twin in pairs:
        rows.append(PublishedRow(label, network, plain))
        rows.append(PublishedRow(f"SE-{label}", f"se_{network}", twin, options=blocks))
    return PublishedTable(
        key,
        f"Table {key}: CIFAR-{classes}",
        tuple(rows),
        unit="M",
        num_classes=classes,
        data=f"cifar{classes}",
        decimals=(1, 2),
        remarks=(
            "Blocks of SE-ResNet-110 have one, two and four hidden units, which is r = 16; "
            "se_resnet110 has at least four where it is not told min_hidden=1.",
        ),
    )


_TABLE_4 = _cifar(
    "4",
    10,
    (
        ("ResNet-110", "resnet110", "6.37", "5.21"),
        ("ResNet-164", "resnet164", "5.46", "4.39"),
        ("WRN-16-8", "wrn16_8", "4.27", "3.88"),
        ("Shake-Shake 26 2x96d + Cutout", "shake_shake_26_2x96d", "2.56", "2.12"),
    ),
)
_TABLE_5 = _cifar(
    "5",
    100,
    (
        ("ResNet-110", "resnet110", "26.88", "23.85"),
        ("ResNet-164", "resnet164", "24.33", "21.31"),
        ("WRN-16-8", "wrn16_8", "20.43", "19.14"),
        ("Shake-Even 29 2x4x64d + Cutout", "shake_shake_29_2x4x64d", "15.85", "15.41"),
    ),
)


def _plain(parameters: str = "25.6", macs: str = "") -> PublishedRow:
    return PublishedRow(
        *("ResNet-50", "resnet50", "23.30", "6.55", macs, parameters), variants=("plain",)
    )


def _variant(
    label: str,
    error: str,
    variants: tuple[str, ...],
    *,
    macs: str = "",
    parameters: str = "",
    parameters_remark: str = "",
    **options: object,
) -> PublishedRow:
    """A form of SE-ResNet-50; ``error`` is top-1/top-5."""
    top1, _, top5 = error.partition("/")
    return PublishedRow(
        *(label, "se_resnet50", top1, top5, macs, parameters),
        options={"bias": False, **options},
        variants=variants,
        parameters_remark=parameters_remark,
    )


_STANDARD = "22.28/6.03"

_REDUCTION = PublishedTable(
    "reduction",
    "Ablation: the reduction r (SE-ResNet-50)",
    (
        _variant("r = 2", "22.29/6.00", ("r2",), parameters="45.7", reduction=2),
        _variant("r = 4", "22.25/6.09", ("r4",), parameters="35.7", reduction=4),
        _variant(
            *("r = 8", "22.26/5.99", ("r8",)),
            parameters="30.7",
            parameters_remark="with the norms' running means and variances 30.64, which would be "
            "printed 30.6; with biases in the blocks as well 30.66, but then r = 2 is 45.75, and "
            "45.7 is printed",
            reduction=8,
        ),
        _variant("r = 16", _STANDARD, ("r16", "se"), parameters="28.1", reduction=16),
        _variant("r = 32", "22.72/6.20", ("r32",), parameters="26.9", reduction=32),
        _plain(),
    ),
    ablation=True,
)

_SQUEEZE = PublishedTable(
    "squeeze",
    "Ablation: the squeeze operator (SE-ResNet-50)",
    (
        _variant("max", "22.57/6.09", ("max",), squeeze="max"),
        _variant("average", _STANDARD, ("avg", "se"), squeeze="avg"),
        _plain(""),
    ),
    ablation=True,
)

_GATE = PublishedTable(
    "gate",
    "Ablation: the non-linearity of the gate (SE-ResNet-50)",
    (
        _variant("ReLU", "23.47/6.98", ("relu",), gate="relu"),
        _variant("tanh", "23.00/6.38", ("tanh",), gate="tanh"),
        _variant("sigmoid", _STANDARD, ("sigmoid", "se"), gate="sigmoid"),
        _plain(""),
    ),
    ablation=True,
)

_STAGE = PublishedTable(
    "stage",
    "Ablation: the stage that has SE (SE-ResNet-50)",
    (
        _plain(),
        _variant("stage 2", "23.03/6.48", ("stage2",), parameters="25.6", sites=2),
        _variant("stage 3", "23.04/6.32", ("stage3",), parameters="25.7", sites=3),
        _variant("stage 4", "22.68/6.22", ("stage4",), parameters="26.4", sites=4),
        _variant("stages 2 to 4", "", ("stages2to4",), sites=(2, 3, 4)),
        _variant("all", _STANDARD, ("all", "se"), parameters="28.1"),
    ),
    ablation=True,
    remarks=(
        "Of stages 2 to 4 the paper says that top-5 is within 0.1 % of all stages, and that about "
        "4 % more parameters than in the plain network are left. A stage's number is how often the "
        "image was halved, so with a stem other than ResNet-50's it is another stage.",
    ),
)

_PLACEMENT = PublishedTable(
    "placement",
    "Ablation: what is gated in a residual block (SE-ResNet-50)",
    (
        _plain(),
        _variant("standard", _STANDARD, ("standard", "se")),
        _variant("pre", "22.23/6.00", ("pre",), placement="pre"),
        _variant("post", "22.78/6.35", ("post",), placement="post"),
        _variant("identity", "22.20/6.15", ("identity",), placement="identity"),
        _variant(
            *("inner 3×3", "22.48/6.02", ("inner",)),
            macs="3.86",
            parameters="25.8",
            placement="inner",
        ),
    ),
    ablation=True,
    remarks=(
        "Pre gates what comes into a block, which has fewer channels in the first of a stage. What "
        "identity gates where a block has a projection the paper does not say; here it is the "
        "projection's output.",
    ),
)

_NO_SQUEEZE = PublishedTable(
    "no-squeeze",
    "Ablation: a gate for every position, without the squeeze (SE-ResNet-50)",
    (
        _plain(""),
        _variant(
            *("without squeeze", "22.93/6.39", ("no_squeeze",)),
            macs="4.27",
            squeeze="none",
        ),
        _variant("SE", _STANDARD, ("se",)),
    ),
    ablation=True,
)

_RELEASED = PublishedTable(
    "released",
    "The networks that the authors released, with biases in their blocks",
    (
        PublishedRow(
            *("SE-BN-Inception", "se_bn_inception", "23.62", "7.04", "2.033", "11.932", "46"),
        ),
        PublishedRow(
            *("SE-ResNet-50", "se_resnet50", "22.37", "6.36", "3.861", "28.088", "107"),
            macs_remark="the rows of its layer table add up to 3,860,488,192, as ours do, which is "
            "3.860 rounded",
        ),
        PublishedRow(
            *("SE-ResNet-101", "se_resnet101", "21.75", "5.72", "7.575", "49.327", "189"),
        ),
        PublishedRow(
            *("SE-ResNet-152", "se_resnet152", "21.34", "5.54", "11.289", "66.822", "256"),
            file_remark="besides the weights, a Caffe file holds the names and settings of layers",
        ),
        PublishedRow(
            *("SE-ResNeXt-50 (32×4d)", "se_resnext50_32x4d"),
            *("20.97", "5.54", "4.233", "27.560", "105"),
        ),
        PublishedRow(
            *("SE-ResNeXt-101 (32×4d)", "se_resnext101_32x4d"),
            *("19.81", "4.96", "7.975", "48.955", "187"),
        ),
        PublishedRow("SENet-154", "senet154", "18.68", "4.47", "20.688", "115.089", "440"),
    ),
    decimals=(4, 3),
    remarks=(
        "GMACs and parameters called printed are sums over the layer tables of the release. "
        "A file is counted as four bytes for each parameter, running mean and running variance.",
    ),
)

PUBLISHED: Mapping[str, PublishedTable] = {
    table.key: table
    for table in (
        *(_TABLE_2, _TABLE_3, _TABLE_4, _TABLE_5),
        *(_REDUCTION, _SQUEEZE, _GATE, _STAGE, _PLACEMENT, _NO_SQUEEZE),
        _RELEASED,
    )
}
"""Key → table, in the paper's order."""
