"""Would a better router help? Compares an oracle, random tokens and other rankings at equal keep ratios.

$ python studies/router_oracle.py CHECKPOINT instances.json IMAGES
$ python studies/router_oracle.py DENSE_CHECKPOINT instances.json IMAGES --model blvit_tiny --data SA1B

The oracle ranks tokens by how much the updates of performance and efficiency block differ, summed over the layers that
a router decides for. All rankings use the scores of the checkpoint's router: in each window its logits are reassigned,
the highest to the token ranked first, so that rankings differ only in the chosen tokens.

A dense checkpoint becomes a big.LITTLE `--model`: its efficiency blocks are fitted layer by layer to photographs of
`--data`, scores do not scale updates, and its untrained routers are left out.

Shapes:
    B  images    N  tokens of an image, window-major    C  channels    M  windows of an image    S  slots of a window
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from tyro.conf import Positional

from sam_blvit.checkpoint.load import load_model
from sam_blvit.cli import run
from sam_blvit.config import PATCH_SIZE, StudentConfig, TrainingDataConfig, WeightsConfig
from sam_blvit.data.instances import Instance, find_images, read_instances
from sam_blvit.data.samples import Sample, TrainingSamples
from sam_blvit.data.sources import training_source
from sam_blvit.evaluate.metrics.overlap import iou
from sam_blvit.evaluate.metrics.statistics import Interval, paired_bootstrap
from sam_blvit.evaluate.metrics.summary import markdown
from sam_blvit.evaluate.photographs import Measurable, Photograph, by_image, photographs
from sam_blvit.evaluate.protocol.view import Prompt, View
from sam_blvit.model.encoder import Encoding, ImageEncoder
from sam_blvit.model.measuring import measuring
from sam_blvit.model.router import choose
from sam_blvit.model.sam import PhotographEncoding, Sam
from sam_blvit.model.variants import RandomRouter
from sam_blvit.model.windows import WindowLayout, WindowScope
from sam_blvit.system.files import write_atomically
from sam_blvit.system.machine import processor
from sam_blvit.train.setup import some_of
from sam_blvit.train.teacher.warm_start import warm_start

WARM_BATCH = 8
"""Images of a step of the warm start."""


@dataclass(frozen=True, kw_only=True)
class OracleConfig:
    """A model whose rankings are compared, and the photographs."""

    checkpoint: Positional[Path]
    """One of our big.LITTLE checkpoints; with `model` a dense one, or a plain SAM .pth."""
    annotations: Positional[Path]
    """Annotations in LVIS v0.5, LVIS v1 or COCO format."""
    images: Positional[Path]
    """Directory of the photographs."""
    model: str | None = None
    """Registry name of the big.LITTLE model that a dense checkpoint becomes."""
    data: Path | None = None
    """Photographs in SA-1B's layout that efficiency blocks of `model` are fitted to."""
    exclude: Path | None = None
    """Text file of image ids of `data` to leave out."""
    warm_start_images: int = StudentConfig.warm_start_images
    """Photographs that efficiency blocks are fitted to."""
    warm_start_steps: int = StudentConfig.warm_start_steps
    """Steps of the fit of each efficiency block."""
    image_size: int | None = None
    """Longest side of the encoder's input, pixels. Default: the checkpoint's."""
    keep_ratios: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Shares of the tokens that are primary."""
    limit: int | None = None
    """Photographs to measure. Default: all."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    output: Path | None = None
    """File for the tables, beside the screen."""

    def __post_init__(self) -> None:
        if (self.model is None) != (self.data is None):
            raise ValueError(f"model={self.model} and data={self.data} go together: what to fit, and to which")
        if not self.keep_ratios or not all(0 < ratio < 1 for ratio in self.keep_ratios):
            raise ValueError(f"keep_ratios={self.keep_ratios}: name some between 0 and 1, where routers choose")


@dataclass(frozen=True)
class Ground:
    """The inputs of a ranking."""

    encoder: ImageEncoder
    after: int
    """The layer that tokens leave, from 1."""
    x: Tensor
    """(B, N, C) the tokens."""
    layout: WindowLayout
    logits: Tensor
    """(B, N) of the checkpoint's own router."""


Ranking = Callable[[Ground], Tensor]
"""How much each token is worth, (B, N): the highest of a window become primary."""


def by_benefit(ground: Ground) -> Tensor:
    """The benefit of each token: the oracle."""
    return ground.encoder.benefits(ground.after, ground.x, ground.layout)


def by_grid(ground: Ground) -> Tensor:
    """The same places in every window, evenly spread for any number of them: an ordered dither's thresholds."""
    side = ground.layout.window
    order = torch.zeros(1, 1, device=ground.x.device)
    while len(order) < side:
        order = torch.cat([torch.cat([4 * order, 4 * order + 2], 1), torch.cat([4 * order + 3, 4 * order + 1], 1)])
    of_window = -order[:side, :side].flatten()
    return in_tokens(of_window.expand(len(ground.x), ground.layout.num_windows, -1), ground.layout)


def by_noise(ground: Ground) -> Tensor:
    """Numbers that are drawn once for all photographs and routers."""
    noise = torch.rand(ground.x.shape[1], generator=torch.Generator().manual_seed(0))
    return noise.to(ground.x.device).expand(len(ground.x), -1)


RANDOM = "random"
RANKINGS: dict[str, Ranking] = {
    "oracle": by_benefit,
    "learned router": lambda ground: ground.logits,
    "norm": lambda ground: ground.x.float().norm(dim=-1),
    "fixed grid": by_grid,
    "fixed noise": by_noise,
    RANDOM: lambda ground: RandomRouter()(ground.x),
    "anti-oracle": lambda ground: -by_benefit(ground),
}
"""Every ranking by name; the last checks the scale of the first."""


def in_tokens(of_slots: Tensor, layout: WindowLayout) -> Tensor:
    """Reorder values of slots (B, M, S) as tokens (B, N)."""
    return WindowScope(layout, of_slots.device).leave(of_slots.reshape(-1, layout.slots, 1)).squeeze(-1)


def dealt(logits: Tensor, worth: Tensor, layout: WindowLayout) -> Tensor:
    """`logits` (B, N) reassigned within each window: the highest to the token of highest `worth` (B, N)."""
    falling = layout.in_slots(logits, empty=-torch.inf).sort(dim=-1, descending=True).values  # (B, M, S)
    best = layout.in_slots(worth, empty=-torch.inf).argsort(dim=-1, descending=True, stable=True)
    return in_tokens(falling.scatter(-1, best, falling), layout)


class RankingRouter(nn.Module):
    """A router whose highest logits go to the tokens that a ranking puts first."""

    def __init__(self, own: nn.Module, ranking: Ranking, ground: Callable[..., Ground]) -> None:
        super().__init__()
        self.own = own
        self.ranking = ranking
        self.ground = ground

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N) of tokens `x` (B, N, C)."""
        ground = self.ground(x=x, logits=self.own(x))
        return dealt(ground.logits, self.ranking(ground), ground.layout)


@contextmanager
def ranked(encoder: ImageEncoder, ranking: Ranking, layout: WindowLayout) -> Iterator[None]:
    """While the context lasts primary tokens of images of this `layout` are the best by `ranking`."""
    own = dict(encoder.routers.items())
    try:
        for name, router in own.items():
            ground = partial(Ground, encoder=encoder, after=int(name) + 1, layout=layout)
            encoder.routers[name] = RankingRouter(router, ranking, ground)
        yield
    finally:
        encoder.routers.update(own)


@dataclass(frozen=True)
class Chosen:
    """The quality of a router's choice."""

    of_best: float
    """Share of the tokens of highest benefit that are chosen; by chance the keep ratio."""
    of_benefit: float
    """Share of the benefit of all tokens that is the chosen ones'; by chance the keep ratio."""


@dataclass(frozen=True)
class Outcome:
    """The measurements of one photograph."""

    image_id: int
    cosine: float
    """Mean over the photograph's tokens of the cosine with the dense embedding."""
    error: float
    """Squared distance from the dense embedding, percent of the square of that."""
    ious: list[float] = field(default_factory=list)
    """Of each object's mask from its box, percent."""
    chosen: dict[int, Chosen] = field(default_factory=dict)
    """By the layer a router follows."""


RankingAtRatio = tuple[float, str]
"""A keep ratio and the name of a ranking."""


def measure(
    sam: Sam,
    images: Sequence[Measurable],
    instances: Sequence[Instance],
    *,
    keep_ratios: Sequence[float],
    rankings: Mapping[str, Ranking],
) -> dict[RankingAtRatio, list[Outcome]]:
    """Outcomes on each of `images`: without primary tokens, with each of `rankings`, and dense."""
    outcomes = defaultdict(list)
    between = [(ratio, name, ranking) for ratio in keep_ratios for name, ranking in rankings.items()]
    read = photographs(images, by_image(instances), side=sam.image_encoder.img_size)
    for photograph in tqdm(read, total=len(images), unit="image"):
        pixels = photograph.resized
        with measuring(sam, 1):
            dense = sam.encode_photograph(pixels)
        for ratio, name, ranking in [(0.0, "", None), *between, (1.0, "", None)]:
            with measuring(sam, ratio):
                encoding = encoded(sam, pixels, ranking, dense.layout) if ranking else sam.encode_photograph(pixels)
                outcomes[ratio, name].append(outcome(sam, photograph, encoding, dense))
    return dict(outcomes)


def encoded(sam: Sam, pixels: NDArray[np.uint8], ranking: Ranking, layout: WindowLayout) -> PhotographEncoding:
    """A photograph (H, W, 3) whose tokens lie in `layout`, primary ones by `ranking`; ValueError if there are none."""
    with ranked(sam.image_encoder, ranking, layout):
        encoding = sam.encode_photograph(pixels, with_benefits=True)
    if not encoding.routings:
        ratio = sam.image_encoder.keep_ratio
        raise ValueError(f"keep_ratio={ratio:g} of a window of {layout.slots} tokens is none; name higher")
    return encoding


def outcome(sam: Sam, photograph: Photograph, encoding: PhotographEncoding, dense: Encoding) -> Outcome:
    """How near `encoding` of `photograph` comes to the `dense` one, and what masks it gives."""
    height, width = encoding.input_size
    rows, columns = -(-height // PATCH_SIZE), -(-width // PATCH_SIZE)
    mine, theirs = (one.embedding[0, :, :rows, :columns].flatten(1).double() for one in (encoding, dense))
    found = Outcome(
        image_id=photograph.image.image_id,
        cosine=torch.cosine_similarity(mine, theirs, dim=0).mean().item(),
        error=100 * ((mine - theirs).square().sum() / theirs.square().sum()).item(),
        chosen={layer: chosen(encoding, layer) for layer in encoding.routings},
    )
    if photograph.truths:
        view = View(sam=sam, embedding=encoding.embedding, size=photograph.size, resized=encoding.input_size)
        boxes = Prompt(boxes=np.array([truth.box for truth in photograph.truths]))
        answers = view.answer(boxes, "argmax").masks
        found.ious.extend(iou(mask, truth.mask) for mask, truth in zip(answers, photograph.truths, strict=True))
    return found


def chosen(encoding: Encoding, layer: int) -> Chosen:
    """The quality of the choice after `layer`."""
    routing, benefits = encoding.routings[layer], encoding.benefits[layer]
    mine = routing.primary[..., 0]
    best = choose(benefits, layout=encoding.layout, num_primary=routing.slots.shape[-1]).primary[..., 0]
    return Chosen(
        of_best=((mine * best).sum() / best.sum()).item(),
        of_benefit=((mine * benefits).sum() / benefits.sum()).item(),
    )


def tables(outcomes: Mapping[RankingAtRatio, Sequence[Outcome]]) -> str:
    """The distance of each ranking from the dense encoder, and the quality of its choices, in Markdown."""
    near, worth = [], []
    routers = sorted({layer for of_way in outcomes.values() for one in of_way for layer in one.chosen})
    for (ratio, name), found in outcomes.items():
        who = name or ("dense" if ratio else "no primary tokens")
        random = outcomes.get((ratio, RANDOM)) if name != RANDOM else None
        error, box = ("", "") if random is None else map(interval, differences(found, random))
        cosine, squared = (f"{np.mean([getattr(one, key) for one in found]):.4f}" for key in ("cosine", "error"))
        ious = np.mean([value for one in found for value in one.ious])
        near.append([f"{ratio:g}", who, cosine, squared, error, f"{ious:.2f}", box])
        if name:
            shares = [[one.chosen[layer] for one in found] for layer in routers]
            cells = [f"{percent(s, 'of_best')} / {percent(s, 'of_benefit')}" for s in shares]
            worth.append([f"{ratio:g}", who, *cells])
    head = ["keep ratio", "primary tokens by"]
    columns = ["cosine", "squared error, %", "to random's", "box mIoU", "to random's"]
    after = [f"after layer {layer}" for layer in routers]
    return (
        "Embeddings against the dense encoder's (squared error relative to the square of that), and masks from boxes; "
        "differences with their 95 % interval by paired bootstrap over photographs:\n\n"
        f"{markdown([*head, *columns], near)}\n\n"
        "Of the tokens of highest benefit, percent that are chosen / of the benefit of all tokens, percent that is the "
        f"chosen ones':\n\n{markdown([*head, *after], worth)}"
    )


def differences(found: Sequence[Outcome], random: Sequence[Outcome]) -> tuple[Interval, Interval]:
    """Error and IoU of `found`, less those of the same photographs with `random` tokens."""
    ids = np.array([one.image_id for one in found])
    errors = np.array([[one.error - other.error] for one, other in zip(found, random, strict=True)])
    ious = [np.subtract(one.ious, other.ious) for one, other in zip(found, random, strict=True)]
    of_objects = paired_bootstrap(np.concatenate(ious)[:, None], np.repeat(ids, [len(each) for each in ious]))
    return paired_bootstrap(errors, ids)[0], of_objects[0]


def interval(found: Interval) -> str:
    """Mean and bounds."""
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def percent(shares: Sequence[Chosen], key: str) -> str:
    """Mean of a share."""
    return f"{100 * np.mean([getattr(share, key) for share in shares]):.1f}"


def prepared(config: OracleConfig) -> tuple[Sam, str]:
    """The model, with fitted efficiency blocks if requested, and its description. ValueError if it routes nothing."""
    sam = load_model(
        WeightsConfig(
            model=config.model or str(config.checkpoint),
            checkpoint=config.checkpoint if config.model else None,
            image_size=config.image_size,
            device=config.device,
        )
    )
    if not sam.config.routed:
        raise ValueError(
            f"{sam.config.name} is dense; name the big.LITTLE model to make of {config.checkpoint} with --model, and "
            "photographs with --data"
        )
    if config.data is None:
        return sam, f"{sam.config.name} as in {config.checkpoint}"
    return sam, f"{sam.config.name} of {config.checkpoint}, {fitted(sam, config, config.data)}"


def fitted(sam: Sam, config: OracleConfig, data: Path) -> str:
    """Fit the efficiency blocks of `sam`. Returns a description of the result."""
    side = sam.config.image_size
    source = training_source(TrainingDataConfig(data=data, exclude=config.exclude))
    dataset = TrainingSamples(source, image_size=side, mask_side=side, masks_per_image=0)
    samples = some_of(dataset, config.warm_start_images, seed=0)
    images = [sample.image for sample in samples if isinstance(sample, Sample)]
    say = partial(print, file=sys.stderr)
    errors = warm_start(sam, images, steps=config.warm_start_steps, batch_size=WARM_BATCH, say=say)
    left = ", ".join(f"{layer}: {error:.3f}" for layer, error in errors.items())
    return (
        f"efficiency blocks fitted to {len(images)} photographs of {source.name} ({len(samples) - len(images)} "
        f"damaged) in {config.warm_start_steps} steps each; error left of the update, by layer: {left}"
    )


def router_oracle(config: OracleConfig) -> None:
    """Print and write the tables. ValueError if the model, photographs or annotations cannot be used."""
    dataset = read_instances(config.annotations)
    objects = by_image([instance for instance in dataset.instances if not instance.crowd])
    images = find_images([dataset.records[image_id] for image_id in objects][: config.limit], config.images)
    instances = [instance for image in images for instance in objects[image.image_id]]
    sam, model = prepared(config)
    has_learnt = config.model is None and sam.config.router_learns
    rankings = {name: ranking for name, ranking in RANKINGS.items() if has_learnt or name != "learned router"}
    outcomes = measure(sam, images, instances, keep_ratios=config.keep_ratios, rankings=rankings)
    scored = sum(len(one.ious) for one in outcomes[1.0, ""])
    text = (
        f"{processor()}, {sam.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; {model}; "
        f"{sam.config.image_size} px; {len(images)} photographs, {scored} objects ({len(instances) - scored} without a "
        f"pixel and all crowds left out)\n\n{tables(outcomes)}\n"
    )
    print(text, end="")
    if config.output is not None:
        write_atomically(config.output, lambda to: Path(to).write_text(text))


if __name__ == "__main__":
    run(router_oracle)
