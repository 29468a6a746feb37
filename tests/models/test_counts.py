"""Parameters and multiply-adds against what the papers print, and where SE goes in each network."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
import torch
from breadth import others_slow

from senet import Plan, plan
from senet.cost import count_macs, count_parameters
from senet.models import build_plain, default_min_hidden, native_input_size


@dataclass(frozen=True)
class Expected:
    """Exact counts of a plain network and what print says of them.

    Args:
        classes: logits.
        parameters, macs: ours.
        printed: millions of parameters and of multiply-adds in print; None where there is none.
        off: how far ours may lie from these, as a fraction.
        added: parameters of the twin's blocks without biases.
        sites: globs over paths and how many sites each has, in order of the graph.
        kinds: the kinds of sites.
    """

    classes: int
    parameters: int
    macs: int
    printed: tuple[float | None, float | None]
    off: tuple[float, float]
    added: int
    sites: dict[str, int]
    kinds: frozenset[str] = frozenset({"residual"})


# What is printed as FLOPs counts norms and pooling too, which is why ours lie below.
NETWORKS = {
    "resnext50_32x4d": Expected(
        *(1000, 25_028_904, 4_230_479_872, (25.0, 4_240), (0.002, 0.003), 2_514_944),
        {f"stage{s}.unit*.increase.bn": n for s, n in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True)},
    ),
    "resnext101_32x4d": Expected(
        *(1000, 44_177_704, 7_969_996_800, (None, 7_990), (0, 0.003), 4_743_168),
        {
            f"stage{s}.unit*.increase.bn": n
            for s, n in zip((2, 3, 4, 5), (3, 4, 23, 3), strict=True)
        },
    ),
    "net154": Expected(
        *(1000, 108_459_944, 20_681_785_344, (None, None), (0, 0), 6_578_176),
        {
            f"stage{s}.unit*.increase.bn": n
            for s, n in zip((2, 3, 4, 5), (3, 8, 36, 3), strict=True)
        },
    ),
    # Simonyan, Zisserman, table 2: 138M. After each convolution unit.
    "vgg16": Expected(
        *(1000, 138_361_768, 15_470_264_320, (138, 15_470), (0.003, 0.0001), 226_304),
        {f"stage{s}.unit*.relu": n for s, n in enumerate((2, 2, 3, 3, 3))},
        frozenset({"chain"}),
    ),
    # Howard et al., table 8. After each pair; the SE paper prints 4.7M with the blocks.
    "mobilenet": Expected(
        *(1000, 4_231_976, 568_740_352, (4.2, 569), (0.008, 0.001), 479_744),
        {"body.pair*.pointwise_relu": 13},
        frozenset({"chain"}),
    ),
    # Zhang et al. print 140 MFLOPs. The SE paper prints 1.8M parameters and does not say how they
    # are counted; the network by its table 1 has 0.07M more.
    "shufflenet": Expected(
        *(1000, 1_865_728, 137_460_672, (1.8, 140), (0.04, 0.02), 610_416),
        {f"stage{s}.unit*.branch.increase.bn": n for s, n in ((3, 4), (4, 8), (5, 4))},
    ),
    # TF-slim's network; see its docstring for the 11.75 GFLOPs of the SE paper.
    "inception_resnet_v2": Expected(
        *(1000, 55_843_464, 13_155_794_016, (None, 11_750), (0, 0.12), 9_196_928),
        {
            "mixed_5b": 1,
            "repeat.*.conv2d": 10,
            "mixed_6a": 1,
            "repeat_1.*.conv2d": 20,
            "mixed_7a": 1,
            "repeat_2.*.conv2d": 9,
            "block8.conv2d": 1,
        },
        frozenset({"residual", "inception"}),
    ),
    # He et al. 2016 (1.7M), Zagoruyko and Komodakis (11.0M), Gastaldi (26.2M, 34.4M).
    "resnet164": Expected(
        *(10, 1_703_258, 244_500_992, (1.7, None), (0.002, 0), 193_536),
        {f"stage{s}.unit*.branch.conv3": 18 for s in range(3)},
    ),
    "wrn16_8": Expected(
        *(10, 10_961_370, 1_548_145_664, (11.0, None), (0.004, 0), 86_016),
        {f"stage{s}.unit*.branch.conv2": 2 for s in range(3)},
    ),
    "shake_shake_26_2x96d": Expected(
        *(10, 26_192_922, 3_776_892_672, (26.2, None), (0.001, 0), 96_768),
        {f"stage{s}.unit*.shake": 4 for s in range(3)},
    ),
    "shake_shake_29_2x4x64d": Expected(
        *(100, 34_529_700, 5_387_358_208, (34.4, None), (0.005, 0), 516_096),
        {f"stage{s}.unit*.shake": 3 for s in range(3)},
    ),
}


TYPICAL = ("mobilenet", "shufflenet", "vgg16", "wrn16_8")
CASES = others_slow(NETWORKS, TYPICAL)


@pytest.mark.parametrize("name", CASES)
def test_counts(name: str) -> None:
    expected = NETWORKS[name]
    with torch.device("meta"):
        model = build_plain(name, expected.classes)
    counts = count_parameters(model), count_macs(model, native_input_size(name))
    assert counts == (expected.parameters, expected.macs)
    for count, printed, off in zip(counts, expected.printed, expected.off, strict=True):
        assert printed is None or count / 1e6 == pytest.approx(printed, rel=off)


def planned(name: str) -> Plan:
    with torch.device("meta"):
        model = build_plain(name)
    size, least = native_input_size(name), default_min_hidden(name)
    return plan(model, input_size=size, min_hidden=least, bias=False)


@pytest.mark.parametrize("name", CASES)
def test_sites_are_the_papers(name: str) -> None:
    expected, found = NETWORKS[name], planned(name)
    globs = [glob for glob, count in expected.sites.items() for _ in range(count)]
    assert len(found) == len(globs)
    for site, glob in zip(found, globs, strict=True):
        assert fnmatchcase(site.path, glob), (site.path, glob)
    assert {site.kind for site in found} == expected.kinds
    assert found.params == expected.added
    known = ("a stem", "a downsample path", "a convolution outside")
    assert all(entry.reason.startswith(known) for entry in found.skipped), found.skipped


def test_what_the_se_paper_prints_of_the_mobile_networks() -> None:
    """Table 3: MobileNet 4.2M → 4.7M, ShuffleNet 1.8M → 2.4M (0.6M more)."""
    mobilenet, shufflenet = NETWORKS["mobilenet"], NETWORKS["shufflenet"]
    assert round((mobilenet.parameters + mobilenet.added) / 1e6, 2) == 4.71
    assert round(shufflenet.added / 1e6, 2) == 0.61
