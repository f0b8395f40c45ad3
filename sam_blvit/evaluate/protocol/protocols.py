"""Named protocols: how prompts are drawn, which of the decoder's masks is scored, what is averaged.

The same weights differ by up to 9 points of mIoU between the protocols in use, so a number always goes with the name
of its protocol. A protocol is only data; `sam_blvit.evaluate.protocol.clicks` and `sam_blvit.evaluate.protocol.view`
carry it out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam_blvit.config import EVALUATION_CHOICES
from sam_blvit.system.files import parse_json

CHOICES = {
    "first": ("uniform", "centre"),
    "later": ("uniform", "uniform-error", "centre-error"),
    "select": EVALUATION_CHOICES["select"],
    "box_source": EVALUATION_CHOICES["box_source"],
    "average": ("instance", "image", "category"),
    "subset": EVALUATION_CHOICES["subset"],
}
"""Fields of a protocol, and the words they take."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to measure. One point and three points are two prompts; a box is the third."""

    name: str
    first: str
    """The first point: uniform over the object, or the centre, where the distance to its outside is largest."""
    later: str
    """The other points: uniform over the object, all given at once; or each after a look at the mask so far, uniform
    over its error or at the centre of its larger error (missed pixels positive, wrong ones negative)."""
    select: str
    """The mask scored: argmax of three by predicted IoU, the single one, oracle (of three by true IoU), or sam (argmax
    for exactly one point, else single)."""
    box_source: str = "ann"
    """The box: as annotated, or the tightest around the mask."""
    feed_mask: bool = False
    """Whether a later point comes with the logits of the mask that it corrects."""
    average: str = "instance"
    """The mean that is the headline: over instances, over images, or over categories."""
    subset: str = "full"
    """full, or minival: photographs of val2017 alone."""
    overridden: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Fields that are not as what goes by this name has them."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.feed_mask, bool):
            raise ValueError(f"protocol {self.name}: feed_mask={self.feed_mask!r} is no bool, or the name is no text")
        for field, words in CHOICES.items():
            if (value := getattr(self, field)) not in words:
                raise ValueError(f"protocol {self.name}: {field}={value!r} is not one of {', '.join(words)}")
        if self.feed_mask and not self.iterative:
            raise ValueError(f"protocol {self.name}: feed_mask needs points that correct a mask, later=*-error")

    @property
    def iterative(self) -> bool:
        """Whether a later point looks at the mask so far."""
        return self.later.endswith("-error")

    @property
    def label(self) -> str:
        """The name, and what was overridden."""
        return " ".join([self.name, *(f"{field}={getattr(self, field)}" for field in self.overridden)])


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # big.LITTLE ViT, section 4.2, in the words of EfficientSAM, section 4.3
        Protocol(name="blvit", first="uniform", later="uniform", select="argmax"),
        # EdgeSAM's evaluator with --point-from mask-rand --refine-iter 3; it draws at 256 x 256, we at full resolution
        Protocol(name="edge-rand", first="uniform", later="uniform-error", select="single"),
        # EdgeSAM's paper
        Protocol(name="edge-center", first="centre", later="uniform-error", select="single"),
        # the clicker of RITM, in the evaluators of EfficientViT-SAM and TinySAM
        Protocol(name="ritm", first="centre", later="centre-error", select="argmax"),
        # Segment Anything, section 6 and appendix D.1
        Protocol(name="sam-rand", first="uniform", later="centre-error", select="sam"),
    )
}
"""Every protocol by name."""


def protocol_named(name: str, **overrides: Any) -> Protocol:
    """The protocol called `name`, or frozen in the JSON file of that path, with those `overrides` that are not None.

    ValueError lists the names there are, or says what is wrong with the file.
    """
    protocol = _read(Path(name)) if name.endswith(".json") else PROTOCOLS.get(name)
    if protocol is None:
        raise ValueError(
            f"no protocol named {name!r}; there are {', '.join(PROTOCOLS)}, or a .json of eval/calibrate.py"
        )
    usual = dataclasses.asdict(protocol)
    given = {field: overrides[field] for field in usual if overrides.get(field) not in (None, usual[field])}
    return dataclasses.replace(protocol, **given, overridden=tuple(given))


def _read(path: Path) -> Protocol:
    if not path.is_file():
        raise ValueError(f"protocol {path} is not a file; eval/calibrate.py writes one")
    try:
        content = parse_json(path.read_text())
        if content["name"] in PROTOCOLS:
            raise ValueError(f"name={content['name']!r} is that of a published protocol; give it one of its own")
        return Protocol(**{**content, "overridden": ()})
    except KeyError as error:
        raise ValueError(f"protocol {path} cannot be used (no {error})") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"protocol {path} cannot be used ({str(error).splitlines()[0]})") from error
