"""Named protocols: how prompts are drawn and which of the decoder's masks is scored.

The same weights differ by up to 9 points of mIoU between the protocols in use, so a number always goes with the name
of its protocol.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to measure. Every point lies on the object; the box is the annotation's."""

    name: str
    points: str
    """How points are drawn, a name in `sam_blvit.data.prompts.DRAW`. All of them are given at once, none after
    looking at a mask."""
    select: str
    """Which of the decoder's three masks is scored, a name in `sam_blvit.evaluate.masks.SELECT`."""


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # big.LITTLE ViT, section 4.2, in the words of EfficientSAM, section 4.3
        Protocol(name="blvit", points="uniform", select="argmax"),
    )
}
"""Every protocol by name."""


def protocol_named(name: str) -> Protocol:
    """The protocol called `name`; ValueError lists the names there are."""
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol named {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
