"""The mask loss of a photograph: ask for its masks, compare, point at an error, ask again.

Shapes:
    n  masks of a sample    P  of them with one kind of prompt    T  tokens of a prompt    G  tokens along a side
    H  outputs of the decoder that may answer: 1, 3 or all 4
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sam_blvit.data.samples import Sample
from sam_blvit.model.decoder import predict_masks
from sam_blvit.model.sam import Sam
from sam_blvit.train.losses import Heads, MaskLoss, Truth, answer_of, compare, mask_loss
from sam_blvit.train.sampling import Draws, Purpose, loss_places, on_device
from sam_blvit.train.simulate import Prompts, add_error_points, draw_prompts, plan_rounds

Decoder = Callable[[Tensor, Tensor, "Tensor | None"], "tuple[Tensor, Tensor]"]
"""Coordinates, labels and the last mask's logits to every output's logits and predicted IoU."""


def mask_losses(
    sam: Sam,
    sample: Sample,
    embedding: Tensor,
    *,
    prompts: str,
    correction_rounds: int,
    seed: int,
    point_sample: int = 0,
    checkpoint_rounds: bool = False,
) -> MaskLoss:
    """Loss of each of the sample's n masks, in its order, mean over the rounds; the answer's IoU is the last round's.

    `embedding` (1, 256, G, G) of the sample's image; `prompts` one of STYLES; `point_sample`: places of a mask that
    focal and dice loss look at, 0 for all; `checkpoint_rounds` computes each round again in the backward pass.
    With no mask all is empty, and its sum has the gradient zero.
    """
    if not sample.ann_ids:
        nothing = embedding.flatten()[:0].float()
        return MaskLoss(total=nothing, focal=nothing, dice=nothing, iou=nothing, answer_iou=nothing.detach())
    device = embedding.device
    draws = Draws(seed, sample.epoch, sample.image_id)
    decoder = partial(predict_all, sam, embedding)
    game = _Game(
        partial(checkpoint, decoder, use_reentrant=False, preserve_rng_state=False) if checkpoint_rounds else decoder,
        plan=plan_rounds(prompts, correction_rounds, draws),
        draws=draws,
        image_size=sam.image_encoder.img_size,
        point_sample=point_sample,
    )
    sample = replace(sample, masks=on_device(sample.masks, device))
    groups = draw_prompts(sample, prompts, image_size=game.image_size, draws=draws)
    losses = [game.loss(group, Truth(sample.masks[on_device(group.masks, device)], sample.valid)) for group in groups]
    order = on_device(torch.cat([group.masks for group in groups]).argsort(), device)
    return _per_field(lambda *values: torch.cat(values)[order], losses)


def predict_all(
    sam: Sam, embedding: Tensor, coords: Tensor, labels: Tensor, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits (P, 4, 4G, 4G) and predicted IoU (P, 4) of every output of the decoder.

    `embedding` (1, 256, G, G); `coords` (P, T, 2) and `labels` (P, T) as in Prompts; `last` (P, 1, 4G, 4G): logits of
    the mask to go on from.
    """
    with torch.autocast(embedding.device.type, enabled=False):  # coordinates want more than bf16's eight bits
        _, dense = sam.prompt_encoder(points=None, boxes=None, masks=last)
        sparse = embed_points(sam.prompt_encoder, coords, labels)
        positions = sam.prompt_encoder.get_dense_pe()
    return predict_masks(
        sam.mask_decoder,
        image_embeddings=embedding,
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


def embed_points(prompt_encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Embed `coords` (P, T, 2) with `labels` (P, T), -1 to 3 as in Prompts: (P, T, 256).

    The tokens are those of the prompt encoder itself, which takes points and corners apart, and only some mixtures.
    """
    kinds = torch.cat([prompt_encoder.not_a_point_embed.weight, *(e.weight for e in prompt_encoder.point_embeddings)])
    places = prompt_encoder.pe_layer.forward_with_coords(coords + 0.5, prompt_encoder.input_image_size)
    return torch.where(labels[..., None] >= 0, places, 0) + kinds[labels + 1]


@dataclass(frozen=True)
class _Game:
    """The rounds that all prompts of a photograph go through."""

    decoder: Decoder
    _: KW_ONLY
    plan: list[bool]
    """For each round after the first, whether it adds a point."""
    draws: Draws
    image_size: int
    point_sample: int

    def loss(self, prompts: Prompts, truth: Truth) -> MaskLoss:
        """Loss of each of P masks, mean over the rounds."""
        losses: list[MaskLoss] = []
        last: Tensor | None = None
        for number, point_follows in enumerate([*self.plan, False]):
            outputs = self.decoder(prompts.coords, prompts.labels, last)
            logits, iou = (output[:, prompts.heads.outputs].float() for output in outputs)
            compared = compare(logits, truth, places=self._places(logits, truth, prompts.ann_ids, number))
            losses.append(mask_loss(compared, iou, prompts.heads))
            answers = (torch.arange(len(iou), device=iou.device), answer_of(iou, prompts.heads))
            last = logits.detach()[answers][:, None]
            if point_follows:
                prompts = self._with_point(prompts, compared.masks[answers], compared.areas, number + 1)
            prompts = replace(prompts, heads=Heads.SINGLE)  # a mask to go on from leaves nothing unclear
        mean = _per_field(lambda *values: torch.stack(values).mean(dim=0), losses)
        return replace(mean, answer_iou=losses[-1].answer_iou)

    def _places(self, logits: Tensor, truth: Truth, ann_ids: Sequence[int], number: int) -> Tensor | None:
        if not self.point_sample:
            return None
        return loss_places(
            logits,
            draws=self.draws,
            ann_ids=ann_ids,
            round_number=number,
            count=self.point_sample,
            covered=(truth.valid[0] / truth.masks.shape[-1], truth.valid[1] / truth.masks.shape[-1]),
        )

    def _with_point(self, prompts: Prompts, answer: Tensor, truth: Truth, number: int) -> Prompts:
        generators = self.draws.masks(prompts.ann_ids, number, Purpose.PROMPT)
        draws = torch.tensor([[rng.random()] for rng in generators], dtype=torch.float64)
        return add_error_points(prompts, answer, truth, image_size=self.image_size, draws=draws)


def _per_field(combine: Callable[..., Tensor], losses: list[MaskLoss]) -> MaskLoss:
    names = [field.name for field in fields(MaskLoss)]
    return MaskLoss(**{name: combine(*(getattr(loss, name) for loss in losses)) for name in names})
