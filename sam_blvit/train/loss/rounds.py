"""The mask loss of photographs: predict masks from prompts, compare, add a point in an error, repeat.

Shapes:
    B  photographs    n  masks of all photographs    P  masks of a photograph with one kind of prompt
    T  tokens of a prompt    G  tokens along a side
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sam_blvit.data.samples import Sample
from sam_blvit.model.sam import Sam
from sam_blvit.train.loss.predict import DecoderOutput, predict_all
from sam_blvit.train.loss.prompts import PromptBatch, add_error_points, draw_prompts, plan_rounds
from sam_blvit.train.loss.sampling import Draws, Purpose, loss_places, on_device
from sam_blvit.train.loss.terms import Heads, MaskLoss, OutputScores, TargetMasks, answer_of, compare, mask_loss


def mask_losses(
    sam: Sam,
    samples: Sequence[Sample],
    embeddings: Tensor,
    *,
    prompts: str,
    correction_rounds: int,
    seed: int,
    point_sample: int = 0,
    checkpoint_rounds: bool = False,
) -> MaskLoss:
    """Compute the loss of each of the n masks of `samples`, in their order.

    Args:
        sam: The model; its image encoder is not run.
        samples: B photographs with their masks.
        embeddings: (B, 256, G, G), of the photographs.
        prompts: One of STYLES. Every photograph has the same number of rounds.
        correction_rounds: Rounds that add a point, with mixed prompts. The other styles have a fixed number.
        seed: Seed of all draws, together with each sample's epoch and image id.
        point_sample: Points per mask at which focal and dice loss are computed. 0: all pixels.
        checkpoint_rounds: Whether to recompute the decoder's outputs in the backward pass.

    Returns:
        The loss, averaged over the rounds; `answer_iou` is the last round's. Without masks all fields are empty, and
        their sum has a gradient of zero.
    """
    decoder = partial(predict_all, sam)
    if checkpoint_rounds:
        decoder = partial(checkpoint, decoder, use_reentrant=False, preserve_rng_state=False)
    prompted = _first_prompts(
        samples,
        prompts,
        correction_rounds,
        device=embeddings.device,
        image_size=sam.image_encoder.img_size,
        seed=seed,
    )
    if not prompted:
        nothing = embeddings.flatten()[:0].float()
        return MaskLoss(total=nothing, focal=nothing, dice=nothing, iou=nothing, answer_iou=nothing.detach())
    for number in range(len(prompted[0].point_follows)):
        for group in _by_token_count(prompted):
            for masks, (logits, iou) in zip(group, ask(decoder, embeddings, group), strict=True):
                masks.take(logits, iou, number, point_sample)
    order = on_device(torch.cat([masks.places for masks in prompted]).argsort(), embeddings.device)
    return _per_field(lambda *values: torch.cat(values)[order], [masks.mean_loss() for masks in prompted])


@dataclass
class PromptedMasks:
    """P masks of one photograph with the same kind of prompt, and their state in the rounds."""

    photograph: int
    """Index of the photograph in the batch."""
    places: Tensor
    """(P,) indices of the masks among those of all photographs, on the CPU."""
    prompts: PromptBatch
    """Prompts of the next round."""
    truth: TargetMasks
    draws: Draws
    image_size: int
    point_follows: list[bool]
    """For each round, whether the next one adds a point."""
    last: Tensor | None = None
    """(P, 1, 4G, 4G) logits of the last answers, fed back in the next round."""
    losses: list[MaskLoss] = field(default_factory=list)
    """Losses of the rounds so far."""

    def take(self, logits: Tensor, iou: Tensor, number: int, point_sample: int) -> None:
        """Compute the loss of round `number` from the decoder's outputs, and prepare the next round.

        Args:
            logits: (P, 4, 4G, 4G)
            iou: (P, 4), predicted.
            number: Number of the round, from 0.
            point_sample: As in `mask_losses`.
        """
        heads = self.prompts.heads
        logits, iou = (output[:, heads.outputs].float() for output in (logits, iou))
        compared = compare(logits, self.truth, places=self._loss_places(logits, number, point_sample))
        self.losses.append(mask_loss(compared, iou, heads))
        answers = (torch.arange(len(iou), device=iou.device), answer_of(iou, heads))
        self.last = logits.detach()[answers][:, None]
        if self.point_follows[number]:
            self._add_points(compared, answers, number + 1)
        self.prompts = replace(self.prompts, heads=Heads.SINGLE)  # a prompt with a mask is not ambiguous

    def mean_loss(self) -> MaskLoss:
        """Return the mean over the rounds, with the last round's `answer_iou`."""
        mean = _per_field(lambda *values: torch.stack(values).mean(dim=0), self.losses)
        return replace(mean, answer_iou=self.losses[-1].answer_iou)

    def _loss_places(self, logits: Tensor, number: int, point_sample: int) -> Tensor | None:
        if not point_sample:
            return None
        height, width = self.truth.valid
        side = self.truth.masks.shape[-1]
        return loss_places(
            logits,
            draws=self.draws,
            ann_ids=self.prompts.ann_ids,
            round_number=number,
            count=point_sample,
            covered=(height / side, width / side),
        )

    def _add_points(self, compared: OutputScores, answers: tuple[Tensor, Tensor], number: int) -> None:
        """Add a point to each prompt for round `number`, in the errors of the round before."""
        generators = self.draws.masks(self.prompts.ann_ids, number, Purpose.PROMPT)
        self.prompts = add_error_points(
            self.prompts,
            compared.masks[answers],
            compared.areas,
            image_size=self.image_size,
            draws=torch.tensor([[rng.random()] for rng in generators], dtype=torch.float64),
        )


def ask(
    decoder: Callable[..., DecoderOutput], embeddings: Tensor, group: Sequence[PromptedMasks]
) -> list[DecoderOutput]:
    """Decode a group of prompts with the same number of tokens in one call of `decoder`.

    Args:
        decoder: `predict_all` of a Sam.
        embeddings: (B, 256, G, G), of all photographs.
        group: Prompted masks in the same round. Those of a photograph are adjacent.

    Returns:
        The output for each element of `group`.
    """
    sizes = [len(masks.places) for masks in group]
    counts: dict[int, int] = defaultdict(int)
    for masks, size in zip(group, sizes, strict=True):
        counts[masks.photograph] += size
    last = [masks.last for masks in group if masks.last is not None]
    logits, iou = decoder(
        torch.stack([embeddings[photograph] for photograph in counts]),
        list(counts.values()),
        torch.cat([masks.prompts.coords for masks in group]),
        torch.cat([masks.prompts.labels for masks in group]),
        torch.cat(last) if last else None,
    )
    return list(zip(logits.split(sizes), iou.split(sizes), strict=True))


def _first_prompts(
    samples: Sequence[Sample], style: str, correction_rounds: int, *, device: torch.device, image_size: int, seed: int
) -> list[PromptedMasks]:
    """Group the masks of `samples` by photograph and kind of prompt, before the first round."""
    prompted = []
    before = 0
    for photograph, sample in enumerate(samples):
        if not sample.ann_ids:
            continue
        draws = Draws(seed, sample.epoch, sample.image_id)
        point_follows = [*plan_rounds(style, correction_rounds, draws), False]
        sample = replace(sample, masks=on_device(sample.masks, device))
        for prompts in draw_prompts(sample, style, image_size=image_size, draws=draws):
            truth = TargetMasks(sample.masks[on_device(prompts.masks, device)], sample.valid)
            places = before + prompts.masks
            prompted.append(PromptedMasks(photograph, places, prompts, truth, draws, image_size, point_follows))
        before += len(sample.ann_ids)
    return prompted


def _by_token_count(prompted: Sequence[PromptedMasks]) -> list[list[PromptedMasks]]:
    groups: dict[int, list[PromptedMasks]] = defaultdict(list)
    for masks in prompted:
        groups[masks.prompts.labels.shape[1]].append(masks)
    return list(groups.values())


def _per_field(combine: Callable[..., Tensor], losses: list[MaskLoss]) -> MaskLoss:
    names = [part.name for part in fields(MaskLoss)]
    return MaskLoss(**{name: combine(*(getattr(loss, name) for loss in losses)) for name in names})
