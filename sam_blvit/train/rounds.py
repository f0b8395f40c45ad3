"""The mask loss of photographs: ask for their masks, compare, point at an error, ask again.

Every kind of prompt of a photograph goes through rounds of its own; in each turn the decoder is asked once for all that
have as many tokens, whichever photograph they are of: asked for a few masks at a time it would start thousands of small
kernels.

Shapes:
    B  photographs    n  masks of all    P  of them that have one kind of prompt, or are asked for at once
    T  tokens of a prompt    G  tokens along a side    H  outputs of the decoder that may answer: 1, 3 or all 4
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
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


@dataclass(frozen=True)
class Question:
    """P prompts on a photograph."""

    photograph: int
    """Its place in the batch."""
    coords: Tensor
    """(P, T, 2), as in Prompts."""
    labels: Tensor
    """(P, T), as in Prompts."""
    last: Tensor | None
    """(P, 1, 4G, 4G): logits of the masks to go on from."""


Answer = tuple[Tensor, Tensor]
"""Logits (P, 4, 4G, 4G) and predicted IoU (P, 4) of every output of the decoder."""
Rounds = Generator[Question, Answer, MaskLoss]
"""Asks, is sent the answer, asks again, and returns the loss of each of P masks."""


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
    """Loss of each of the n masks of `samples`, in their order, mean over the rounds; the answer's IoU is the last
    round's.

    `embeddings` (B, 256, G, G) of the samples' images; `prompts` one of STYLES; `point_sample`: places of a mask that
    focal and dice loss look at, 0 for all; `checkpoint_rounds` computes each round again in the backward pass.
    With no mask all is empty, and its sum has the gradient zero.
    """
    device = embeddings.device
    decoder = partial(predict_all, sam)
    if checkpoint_rounds:
        decoder = partial(checkpoint, decoder, use_reentrant=False, preserve_rng_state=False)
    order: list[Tensor] = []
    games: list[Rounds] = []
    for photograph, sample in enumerate(samples):
        if not sample.ann_ids:
            continue
        draws = Draws(seed, sample.epoch, sample.image_id)
        game = _Game(
            photograph,
            plan=plan_rounds(prompts, correction_rounds, draws),
            draws=draws,
            image_size=sam.image_encoder.img_size,
            point_sample=point_sample,
        )
        sample = replace(sample, masks=on_device(sample.masks, device))
        before = sum(len(earlier.ann_ids) for earlier in samples[:photograph])
        for group in draw_prompts(sample, prompts, image_size=game.image_size, draws=draws):
            order.append(before + group.masks)
            truth = Truth(sample.masks[on_device(group.masks, device)], sample.valid)
            games.append(game.rounds(group, truth))
    if not games:
        nothing = embeddings.flatten()[:0].float()
        return MaskLoss(total=nothing, focal=nothing, dice=nothing, iou=nothing, answer_iou=nothing.detach())
    losses = _play(games, lambda questions: answer_all(decoder, embeddings, questions))
    places = on_device(torch.cat(order).argsort(), device)
    return _per_field(lambda *values: torch.cat(values)[places], losses)


def answer_all(decoder: Callable[..., Answer], embeddings: Tensor, questions: Sequence[Question]) -> list[Answer]:
    """The answer to each of `questions`, by one call of `decoder`, which is `predict_all` of a Sam, for each number of
    tokens. `embeddings` (B, 256, G, G) of all photographs; the questions on one follow each other."""
    alike: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        alike[question.labels.shape[1], question.last is None].append(place)
    answers: dict[int, Answer] = {}
    for (_, first), places in alike.items():
        asked = [questions[place] for place in places]
        counts: dict[int, int] = defaultdict(int)
        for question in asked:
            counts[question.photograph] += len(question.labels)
        logits, iou = decoder(
            torch.stack([embeddings[photograph] for photograph in counts]),
            list(counts.values()),
            torch.cat([question.coords for question in asked]),
            torch.cat([question.labels for question in asked]),
            None if first else torch.cat([question.last for question in asked if question.last is not None]),
        )
        sizes = [len(question.labels) for question in asked]
        answers.update(zip(places, zip(logits.split(sizes), iou.split(sizes), strict=True), strict=True))
    return [answers[place] for place in range(len(questions))]


def predict_all(
    sam: Sam, embeddings: Tensor, counts: Sequence[int], coords: Tensor, labels: Tensor, last: Tensor | None
) -> Answer:
    """Logits (P, 4, 4G, 4G) and predicted IoU (P, 4) of every output of the decoder.

    `embeddings` (B, 256, G, G), of which the first has the first of `counts` prompts, and so on; `coords` (P, T, 2) and
    `labels` (P, T) as in Prompts; `last` (P, 1, 4G, 4G): logits of the masks to go on from.
    """
    with torch.autocast(embeddings.device.type, enabled=False):  # coordinates want more than bf16's eight bits
        _, dense = sam.prompt_encoder(points=None, boxes=None, masks=last)
        sparse = embed_points(sam.prompt_encoder, coords, labels)
        positions = sam.prompt_encoder.get_dense_pe()
    return predict_masks(
        sam.mask_decoder,
        image_embeddings=embeddings,
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        counts=counts,
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

    photograph: int
    """Its place in the batch."""
    _: KW_ONLY
    plan: list[bool]
    """For each round after the first, whether it adds a point."""
    draws: Draws
    image_size: int
    point_sample: int

    def rounds(self, prompts: Prompts, truth: Truth) -> Rounds:
        """Ask for P masks; the loss of each is the mean over the rounds."""
        losses: list[MaskLoss] = []
        last: Tensor | None = None
        for number, point_follows in enumerate([*self.plan, False]):
            answer = yield Question(self.photograph, prompts.coords, prompts.labels, last)
            logits, iou = (output[:, prompts.heads.outputs].float() for output in answer)
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


def _play(games: Sequence[Rounds], answered: Callable[[Sequence[Question]], Sequence[Answer]]) -> list[MaskLoss]:
    """What each of `games` returns; in each turn the questions of all that still ask are `answered` together."""
    losses: dict[int, MaskLoss] = {}
    questions = {place: next(game) for place, game in enumerate(games)}
    while questions:
        answers = dict(zip(questions, answered(list(questions.values())), strict=True))
        questions = {}
        for place, answer in answers.items():
            turn = _sent(games[place], answer)
            if isinstance(turn, Question):
                questions[place] = turn
            else:
                losses[place] = turn
    return [losses[place] for place in range(len(games))]


def _sent(game: Rounds, answer: Answer) -> Question | MaskLoss:
    """What `game` makes of the answer: its next question, or its end."""
    try:
        return game.send(answer)
    except StopIteration as end:
        return end.value


def _per_field(combine: Callable[..., Tensor], losses: list[MaskLoss]) -> MaskLoss:
    names = [field.name for field in fields(MaskLoss)]
    return MaskLoss(**{name: combine(*(getattr(loss, name) for loss in losses)) for name in names})
