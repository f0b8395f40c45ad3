"""Equation 5 on the numbers that the Little-Big paper prints in tables 1, 2, 3 and 9: what adds up, and what does not.

A printed number stands for every number that rounds to it; a row adds up if some of these do.
"""

from __future__ import annotations

import pytest

from sam_blvit.cascade.rule import average_cost

GMACS = {
    "EfficientNet-B0": "0.39",
    "EfficientNet-B2": "1.09",
    "EfficientNet-B3": "1.83",
    "EfficientNet-B4": "4.39",
    "EfficientViT-L2-288": "11.0",
    "DeiT-S": "4.6",
    "DeiT3-S": "4.6",
    "DeiT3-B": "17.6",
    "DeiT3-L": "191.2",
}
"""What tables 1 and 2 print for models that are the little one of a row."""

TABLE_2 = [
    # big, its GMACs, little, GMACs and change on ImageNet-1K, GMACs and change on ImageNet-V2
    ("EfficientNet-B2", "1.09", "EfficientNet-B0", "0.78", "-28", "0.91", "-16"),
    ("EfficientNet-B2", "1.09", "EfficientViT-B1", "0.73", "-33", "0.83", "-24"),
    ("EfficientNet-B3", "1.83", "EfficientNet-B1", "1.36", "-26", "1.56", "-15"),
    ("EfficientNet-B3", "1.83", "EfficientViT-B1", "1.07", "-42", "1.27", "-31"),
    ("EfficientNet-B4", "4.39", "EfficientNet-B3", "2.7", "-38", "3.1", "-29"),
    ("EfficientNet-B4", "4.39", "EfficientNet-B2", "2.7", "-39", "3.2", "-27"),
    ("EfficientViT-B3-288", "6.5", "EfficientViT-B3-224", "4.7", "-28", "5.1", "-22"),
    ("EfficientViT-B3-288", "6.5", "EfficientViT-B2-288", "3.8", "-42", "4.3", "-33"),
    ("EfficientViT-B3-288", "6.5", "EfficientViT-B2-224", "3.8", "-42", "4.5", "-30"),
    ("ConvNext-L", "34.3", "ConvNext-S", "15.7", "-54", "19.2", "-44"),
    ("EfficientNet-B7", "37.8", "EfficientNet-B6", "20.1", "-47", "21.4", "-43"),
    ("EfficientNet-B7", "37.8", "EfficientNet-B5", "13.2", "-65", "15.4", "-59"),
    ("EfficientNet-B7", "37.8", "EfficientNet-B4", "7.1", "-81", "9.5", "-75"),
    ("EfficientNet-B7", "37.8", "EfficientNet-B0", "28.4", "-25", "31.1", "-18"),
    ("EfficientViT-L3-384", "81.0", "EfficientViT-L2-384", "27.0", "-67", "31.7", "-61"),
    ("EfficientViT-L3-384", "81.0", "EfficientViT-L2-288", "19.8", "-76", "25.0", "-69"),
    ("DeiT3-L", "191.2", "DeiT3-B", "71.2", "-63", "90.3", "-53"),
    ("DeiT3-L", "191.2", "EfficientViT-L2-288", "54.7", "-71", "74.0", "-61"),
    ("ViT-H-14", "1016", "ViT-L-16", "430", "-58", "488", "-52"),
    ("ViT-H-14", "1016", "DeiT3-L", "204", "-80", "276", "-73"),
    ("InternImage-G", "2700", "InternImage-XL", "1436", "-47", "1781", "-34"),
    ("InternImage-G", "2700", "DeiT3-L", "1035", "-62", "1335", "-51"),
]
TABLE_3 = [
    # big, its GMACs, little or method, GMACs, change
    ("DeiT-S", "4.6", "DynamicViT", "3.4", "-26"),
    ("DeiT-S", "4.6", "A-ViT", "3.6", "-22"),
    ("DeiT-S", "4.6", "TPS", "3.0", "-35"),
    ("DeiT-S", "4.6", "SPViT", "3.3", "-28"),
    ("DeiT-S", "4.6", "EfficientViT-B1", "1.1", "-77"),
    ("DeiT3-S", "4.6", "EfficientViT-B1", "2.1", "-54"),
    ("DeiT3-S", "4.6", "EfficientNet-B2", "2.0", "-56"),
    ("DeiT-B", "17.6", "DynamicViT, TPS", "11.4", "-35"),
    ("DeiT-B", "17.6", "SCOP", "10.2", "-42"),
    ("DeiT-B", "17.6", "UVC", "8.0", "-55"),
    ("DeiT-B", "17.6", "WDPruning", "9.9", "-44"),
    ("DeiT-B", "17.6", "X-Pruner", "8.5", "-52"),
    ("DeiT-B", "17.6", "SPViT", "8.4", "-52"),
    ("DeiT-B", "17.6", "DeiT-S", "9.0", "-49"),
    ("DeiT3-B", "17.6", "DeiT3-S", "11.4", "-35"),
    ("Swin-S", "8.7", "WDPruning", "6.3", "-28"),
    ("Swin-S", "8.7", "X-Pruner", "6.0", "-31"),
    ("Swin-S", "8.7", "SPViT", "6.1", "-30"),
    ("Swin-S", "8.7", "Swin-T", "7.0", "-20"),
    ("Swin-S", "8.7", "EfficientViT-B2", "2.5", "-71"),
]
TABLE_9 = [
    # little, samples/s and change, milliseconds and change; the last was read as 0.4 for EfficientNet-B4
    ("EfficientNet-B0", "54.0", "52", "18.5", "-34"),
    ("EfficientNet-B1", "39.9", "12", "25.1", "-11"),
    ("EfficientNet-B2", "76.6", "116", "13.1", "-54"),
    ("EfficientNet-B3", "86.4", "144", "11.6", "-59"),
    ("EfficientNet-B5", "97.1", "174", "10.3", "-64"),
    ("EfficientNet-B6", "62.4", "76", "16.0", "-43"),
]
PERCENTAGES = [
    *(("table 2", *row[:3], *row[3:5]) for row in TABLE_2),
    *(("table 2, V2", *row[:3], *row[5:7]) for row in TABLE_2),
    *(("table 3", *row) for row in TABLE_3),
]
MISFITS = [
    ("table 2: EfficientNet-B4 alone is 4.6, 4.39 in table 1", "4.6", "2.7", "-38"),
    ("table 2: EfficientNet-B7 with B3", "37.8", "14.0", "-61"),
    ("table 2: EfficientNet-B7 with B1, whose change table 9 prints", "37.8", "32.0", "-13"),
    ("table 2, V2: EfficientViT-L3-384 with L3-256", "81.0", "44.3", "-45.9"),
]
"""Rows that do not add up, as they stand in the text; where digits are garbled it may not be the paper's fault."""


def bounds(printed: str) -> tuple[float, float]:
    """The numbers that round to `printed`."""
    half = 0.5 * 10 ** -len(printed.partition(".")[2])
    return float(printed) - half, float(printed) + half


def change(before: str, after: str) -> tuple[float, float]:
    """Bounds of the change from `before` to `after`, percent."""
    (low, high), (least, most) = bounds(before), bounds(after)
    return 100 * (least / high - 1), 100 * (most / low - 1)


def meet(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two ranges have a number in common."""
    return first[0] <= second[1] and second[0] <= first[1]


def share(little: str, big: str, mean: str) -> tuple[float, float]:
    """Bounds of the share passed on that equation 5 gives for a mean cost."""
    (a, b), (c, d), (e, f) = bounds(little), bounds(big), bounds(mean)
    return (e - b) / d, (f - a) / c


@pytest.mark.parametrize(("table", "big", "alone", "with_", "mean", "percent"), PERCENTAGES)
def test_percentages_follow_from_absolute_gmacs(
    table: str, big: str, alone: str, with_: str, mean: str, percent: str
) -> None:
    assert meet(change(alone, mean), bounds(percent)), f"{table}: {big} with {with_}"


@pytest.mark.parametrize(("what", "alone", "mean", "percent"), MISFITS)
def test_rows_that_do_not_add_up(what: str, alone: str, mean: str, percent: str) -> None:
    assert not meet(change(alone, mean), bounds(percent)), what


@pytest.mark.parametrize(("big", "alone", "little", "mean"), [row[1:5] for row in PERCENTAGES if row[3] in GMACS])
def test_equation_5_gives_a_share_between_0_and_1(big: str, alone: str, little: str, mean: str) -> None:
    low, high = share(GMACS[little], alone, mean)
    assert low < 1
    assert high > 0
    middle = (float(mean) - float(GMACS[little])) / float(alone)
    assert 0 < middle < 1
    assert average_cost([float(GMACS[little]), float(alone)], [middle]) == pytest.approx(float(mean))


def test_more_samples_are_passed_on_where_pictures_are_harder() -> None:
    assert all(float(row[5]) > float(row[3]) for row in TABLE_2)


def test_three_passes_cost_what_the_paper_says() -> None:
    """EfficientNet-B2, B4, B7 at thresholds 0.74 and 0.26: 85 % less (appendix A.2)."""
    costs = [float(GMACS["EfficientNet-B2"]), float(GMACS["EfficientNet-B4"]), 37.8]
    by_b2 = (15.6 - costs[0]) / 37.8  # table 2: B2 and B7 at 0.74
    by_b4 = (0.15 * 37.8 - average_cost(costs[:2], [by_b2])) / 37.8
    assert 0 < by_b4 < by_b2 < 1
    assert by_b4 == pytest.approx((7.1 - costs[1]) / 37.8, abs=0.01)  # B4 and B7 at 0.24, nearly the same share
    assert average_cost(costs, [by_b2, by_b4]) == pytest.approx(0.15 * 37.8)


@pytest.mark.parametrize(("little", "throughput", "faster", "latency", "less"), TABLE_9)
def test_throughput_latency_and_changes_agree(
    little: str, throughput: str, faster: str, latency: str, less: str
) -> None:
    assert meet(change("35.5", throughput), bounds(faster)), little
    assert meet(change("28.2", latency), bounds(less)), little
    per_second = tuple(1000 / bound for bound in reversed(bounds(latency)))
    assert meet((per_second[0], per_second[1]), bounds(throughput)), little


def test_table_9_has_two_numbers_that_do_not_add_up() -> None:
    assert meet(change("35.5", "155.2"), bounds("338"))
    assert not meet(change("35.5", "155.2"), bounds("339"))  # the caption's
    assert not meet(change("28.2", "0.4"), bounds("-77"))  # EfficientNet-B4's milliseconds
    assert meet(change("28.2", "6.4"), bounds("-77"))  # 1000 / 155.2


def test_table_1_has_one_ratio_that_does_not_add_up() -> None:
    factors = [("0.39", "1.09", "1.8"), ("0.39", "4.39", "10.3"), ("0.39", "37.8", "95.8"), ("5.3", "11.0", "1.1")]
    factors += [("5.3", "81.0", "14.3"), ("4.6", "191.2", "40.6")]
    for before, after, factor in factors:
        low, high = change(before, after)
        assert meet((low / 100, high / 100), bounds(factor))
    low, high = change("4.6", "17.6")  # DeiT3-B after DeiT3-S: 2.8, not 1.1
    assert not meet((low / 100, high / 100), bounds("1.1"))
