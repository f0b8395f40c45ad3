"""Every protocol names ways that exist."""

from __future__ import annotations

from typing import Any

from sam_blvit.data.prompts import DRAW
from sam_blvit.evaluate.masks import SELECT
from sam_blvit.evaluate.protocols import PROTOCOLS, protocol_named


def test_the_papers_protocol_is_uniform_points_and_the_mask_rated_best() -> None:
    protocol = protocol_named("blvit")
    assert (protocol.name, protocol.points, protocol.select) == ("blvit", "uniform", "argmax")


def test_every_protocol_can_be_carried_out() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert protocol.points in DRAW
        assert protocol.select in SELECT


def test_an_unknown_protocol_is_refused_with_the_names_there_are(refused: Any) -> None:
    with refused(ValueError, "no protocol named 'ritm'; there are blvit"):
        protocol_named("ritm")
