"""The rounds of prompts and answers: the inputs of the decoder, and the loss of its outputs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_blvit.config import ModelConfig
from sam_blvit.data.samples import Sample
from sam_blvit.model.build import build_sam
from sam_blvit.model.decoder import predict_masks
from sam_blvit.model.sam import Sam
from sam_blvit.train.loss.predict import DecoderOutput, embed_points, predict_all
from sam_blvit.train.loss.prompts import add_error_points, draw_prompts
from sam_blvit.train.loss.rounds import PromptedMasks, ask, mask_losses
from sam_blvit.train.loss.sampling import Draws, loss_places
from sam_blvit.train.loss.terms import Heads, MaskLoss, TargetMasks, compare, mask_loss

SIDE = 64


@pytest.fixture
def sam(tiny: Callable[..., ModelConfig], randomize: Callable[[nn.Module], nn.Module]) -> Sam:
    """A model of 128 pixels whose prompt encoder and decoder have nothing at zero, and answer with confidence."""
    sam = build_sam(tiny())
    randomize(sam.prompt_encoder)
    randomize(sam.mask_decoder)
    return sam


def sample(masks: int = 6) -> Sample:
    """A photograph of 96 x 128 with rectangles, at half resolution; mixed prompts ask for six in all three ways."""
    drawn = torch.zeros(masks, SIDE, SIDE, dtype=torch.bool)
    for i in range(masks):
        drawn[i, 2 + 3 * i : 20 + 4 * i, 5 + 4 * i : 30 + 5 * i] = True
    boxes = torch.tensor([[10.0 + 8 * i, 4 + 6 * i, 60 + 10 * i, 40 + 8 * i] for i in range(masks)]).reshape(masks, 4)
    return Sample(
        epoch=2,
        image_id=1,
        image=torch.zeros(3, 96, 128, dtype=torch.uint8),
        masks=drawn,
        boxes=boxes,
        ann_ids=tuple(range(10, 10 + masks)),
        valid=(48, 64),
    )


def embedding() -> Tensor:
    return torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(1))


def losses(sam: Sam, of: Sample, at: Tensor | None = None, **settings: Any) -> MaskLoss:
    given = {"prompts": "mixed", "correction_rounds": 2, "seed": 0, **settings}
    return mask_losses(sam, [of], embedding() if at is None else at, **given)


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple[PromptedMasks, DecoderOutput]]]]:
    """What is asked and answered: round by round, boxes before single points before several."""
    rounds: list[list[tuple[PromptedMasks, DecoderOutput]]] = []

    def asked(
        decoder: Callable[..., DecoderOutput], embeddings: Tensor, group: list[PromptedMasks]
    ) -> list[DecoderOutput]:
        answers = ask(decoder, embeddings, group)
        for masks, answer in zip(group, answers, strict=True):
            number = len(masks.losses)
            if number == len(rounds):
                rounds.append([])
            rounds[number].append((copy(masks), answer))  # a copy, as `masks` moves on to the next round
        return answers

    with monkeypatch.context() as patch:
        patch.setattr("sam_blvit.train.loss.rounds.ask", asked)
        yield rounds


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many masks the decoder is asked for, call by call."""
    calls: list[int] = []

    def asked(decoder: nn.Module, **given: Any) -> Any:
        calls.append(len(given["sparse_prompt_embeddings"]))
        return predict_masks(decoder, **given)

    with monkeypatch.context() as patch:
        patch.setattr("sam_blvit.train.loss.predict.predict_masks", asked)
        yield calls


def sorted_tokens(tokens: Tensor) -> Tensor:
    return torch.stack([row[row[:, 0].argsort()] for row in tokens])


@pytest.mark.parametrize(("points", "boxed"), [(1, False), (3, False), (0, True), (2, True)])
def test_prompts_are_embedded_as_by_sams_own_prompt_encoder(sam: Sam, points: int, boxed: bool) -> None:
    xy, labels = torch.rand(4, points, 2) * 128, torch.randint(0, 2, (4, points))
    boxes = torch.rand(4, 4) * 128 if boxed else None
    theirs, dense = sam.prompt_encoder(points=(xy, labels) if points else None, boxes=boxes, masks=None)
    if boxes is None:  # SAM's own padding
        xy, labels = torch.cat([xy, torch.rand(4, 1, 2)], 1), torch.cat([labels, -torch.ones(4, 1).long()], 1)
    else:
        xy, labels = torch.cat([boxes.view(4, 2, 2), xy], 1), torch.cat([torch.tensor([[2, 3]] * 4), labels], 1)
    torch.testing.assert_close(sorted_tokens(embed_points(sam.prompt_encoder, xy, labels)), sorted_tokens(theirs))
    logits, iou = predict_all(sam, embedding(), [4], xy, labels, None)
    expected = sam.mask_decoder.predict_masks(embedding(), sam.prompt_encoder.get_dense_pe(), theirs, dense)
    torch.testing.assert_close((logits, iou), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("prompts", "rounds"), [("mixed", 4), ("sam11", 11), ("evs", 1)])
def test_the_decoder_is_asked_as_often_as_the_kind_of_training_says(
    sam: Sam, monkeypatch: pytest.MonkeyPatch, prompts: str, rounds: int
) -> None:
    with counting(monkeypatch) as calls:
        losses(sam, sample(1), prompts=prompts)
    assert calls == [1] * rounds


def slow_losses(of: Sample, turns: list[list[tuple[PromptedMasks, DecoderOutput]]]) -> dict[int, Tensor]:
    """Loss by annotation, from what the decoder answered, mask by mask."""
    groups = draw_prompts(of, "mixed", image_size=128, draws=Draws(0, of.epoch, of.image_id))
    found = {}
    for g, group in enumerate(groups):
        for i, ann_id in enumerate(group.ann_ids):
            truth = TargetMasks(of.masks[of.ann_ids.index(ann_id)][None], of.valid)
            values = []
            for number, turn in enumerate(turns):
                heads = Heads.SINGLE if number else group.heads
                seen, iou = (output[i : i + 1, heads.outputs] for output in turn[g][1])
                values.append(mask_loss(compare(seen, truth), iou, heads).total)
            found[ann_id] = sum(values) / len(values)
    return found


def test_the_loss_of_a_mask_is_the_mean_over_its_rounds_in_the_order_of_the_sample(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = sample()
    with recording(monkeypatch) as turns:
        total = losses(sam, of).total
    assert [len(turn) for turn in turns] == [3] * 4  # rounds of boxes, of single points and of several
    expected = slow_losses(of, turns)
    torch.testing.assert_close(total, torch.cat([expected[ann_id] for ann_id in of.ann_ids]))


def test_parts_make_up_the_total(sam: Sam) -> None:
    loss = losses(sam, sample())
    torch.testing.assert_close(loss.total, 20 * loss.focal + loss.dice + loss.iou)


def test_a_masks_loss_does_not_depend_on_the_order_of_masks(sam: Sam) -> None:
    of, order = sample(), torch.tensor([3, 0, 5, 1, 4, 2])
    turned = replace(of, masks=of.masks[order], boxes=of.boxes[order], ann_ids=tuple(of.ann_ids[i] for i in order))
    torch.testing.assert_close(losses(sam, turned).total, losses(sam, of).total[order])


@pytest.mark.parametrize("name", ["seed", "epoch", "image_id"])
def test_prompts_change_with_seed_epoch_and_image(sam: Sam, name: str) -> None:
    other = losses(sam, sample(), seed=1) if name == "seed" else losses(sam, replace(sample(), **{name: 5}))
    assert not torch.allclose(other.total, losses(sam, sample()).total)


def test_global_random_numbers_are_neither_used_nor_drawn(sam: Sam) -> None:
    state = torch.random.get_rng_state()
    first = losses(sam, sample(), point_sample=50).total
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(losses(sam, sample(), point_sample=50).total, first)


def test_each_round_goes_on_from_the_last_answer_and_learns_nothing_through_it(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = sample()
    groups = draw_prompts(of, "mixed", image_size=128, draws=Draws(0, of.epoch, of.image_id))
    with recording(monkeypatch) as turns:
        losses(sam, of)
    for g, group in enumerate(groups):
        assert turns[0][g][0].last is None
        for number in range(1, 4):
            (logits, predicted), last = turns[number - 1][g][1], turns[number][g][0].last
            assert last is not None
            assert not last.requires_grad
            for i in range(len(group.masks)):
                unclear = number == 1 and group.heads is Heads.MULTI
                answer = 1 + int(predicted[i, 1:].argmax()) if unclear else 0
                assert torch.equal(last[i, 0], logits[i, answer])


def test_correction_rounds_add_a_point_at_an_error_of_the_last_answer_and_the_last_round_none(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = sample()
    with recording(monkeypatch) as turns:
        losses(sam, of)
    groups = draw_prompts(of, "mixed", image_size=128, draws=Draws(0, of.epoch, of.image_id))
    for g, group in enumerate(groups):
        questions = [turn[g][0] for turn in turns]
        tokens = [question.prompts.labels.shape[1] for question in questions]
        assert tokens == [tokens[0], tokens[0] + 1, tokens[0] + 2, tokens[0] + 2]
        for number in (1, 2):
            prompts, last = questions[number].prompts, questions[number].last
            assert last is not None
            answer = F.interpolate(last, (SIDE, SIDE), mode="bilinear")[:, 0] > 0
            for i, mask in enumerate(group.masks.tolist()):
                column, row = (int((c + 0.5) / 2) for c in prompts.coords[i, -1].tolist())
                assert prompts.labels[i, -1] == of.masks[mask, row, column].long()
                assert answer[i, row, column] != of.masks[mask, row, column]
                assert row < 48


def test_every_round_draws_anew(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected: list[list[float]] = []
    looked: list[Tensor] = []

    def adding(*given: Any, draws: Tensor, **others: Any) -> Any:
        corrected.append(draws.flatten().tolist())
        return add_error_points(*given, draws=draws, **others)

    def placing(logits: Tensor, **given: Any) -> Tensor:
        looked.append(loss_places(torch.zeros_like(logits[:, :1]), **given))  # whatever the answer
        return looked[-1]

    monkeypatch.setattr("sam_blvit.train.loss.rounds.add_error_points", adding)
    monkeypatch.setattr("sam_blvit.train.loss.rounds.loss_places", placing)
    losses(sam, sample(1), prompts="sam11", point_sample=8)
    assert len(looked) == 11
    assert len({tuple(draws) for draws in corrected}) == 8
    assert len({tuple(places.flatten().tolist()) for places in looked}) == 11


def test_the_answers_iou_is_the_last_rounds(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    of = sample(1)
    with recording(monkeypatch) as turns:
        loss = losses(sam, of)
    ((_, (logits, _)),) = turns[-1]
    answer = F.interpolate(logits[:, :1], (SIDE, SIDE), mode="bilinear")[0, 0, :48] > 0
    overlap, union = (answer & of.masks[0, :48]).sum(), (answer | of.masks[0, :48]).sum()
    torch.testing.assert_close(loss.answer_iou, (overlap / union)[None])
    assert not loss.answer_iou.requires_grad


def test_a_photograph_without_masks_costs_nothing_and_has_a_gradient(sam: Sam) -> None:
    at = embedding().requires_grad_()
    loss = losses(sam, sample(0), at)
    assert all(getattr(loss, field.name).shape == (0,) for field in fields(MaskLoss))
    loss.total.sum().backward()
    assert at.grad is not None
    assert (at.grad == 0).all()


@pytest.mark.parametrize("point_sample", [0, 64])
def test_checkpointed_rounds_have_the_same_loss_and_gradients(sam: Sam, point_sample: int) -> None:
    found = []
    for checkpointed in (False, True):
        at = embedding().requires_grad_()
        sam.zero_grad()
        loss = losses(sam, sample(), at, point_sample=point_sample, checkpoint_rounds=checkpointed).total
        loss.sum().backward()
        gradients = [p.grad.clone() for p in sam.mask_decoder.parameters() if p.grad is not None]
        found.append([loss.detach(), at.grad, *gradients])
    assert len(found[0]) > 50
    for plain, checkpointed_value in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed_value, plain)


def test_a_checkpointed_round_is_computed_again_in_the_backward_pass(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    with counting(monkeypatch) as calls:
        loss = losses(sam, sample(1), embedding().requires_grad_(), checkpoint_rounds=True).total
        before = len(calls)
        loss.sum().backward()
    assert (before, len(calls)) == (4, 8)


def test_losses_are_fp32_and_coordinates_exact_under_autocast(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[Tensor] = []

    def embedding_points(*given: Any) -> Tensor:
        embedded.append(embed_points(*given))
        return embedded[-1]

    monkeypatch.setattr("sam_blvit.train.loss.predict.embed_points", embedding_points)
    with torch.autocast("cpu", dtype=torch.bfloat16), recording(monkeypatch) as turns:
        rough = losses(sam, sample(), prompts="evs")  # no prompt depends on an answer
    assert all(logits.dtype == torch.bfloat16 for turn in turns for _, (logits, _) in turn)
    assert rough.total.dtype == torch.float32
    calls = len(embedded)
    losses(sam, sample(), prompts="evs")
    assert calls == len(embedded) - calls == 2
    for in_bf16, exact in zip(embedded[:calls], embedded[calls:], strict=True):
        assert torch.equal(in_bf16, exact)


def photographs() -> tuple[list[Sample], Tensor]:
    """Three of different sizes and numbers of masks, one without, and their embeddings."""
    samples = [replace(sample(count), image_id=image_id) for image_id, count in enumerate((6, 0, 4, 1))]
    samples[2] = replace(samples[2], valid=(40, 60))
    return samples, torch.randn(4, 256, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("settings", [{}, {"prompts": "sam11"}, {"prompts": "evs", "point_sample": 64}])
def test_photographs_asked_about_together_have_the_losses_and_gradients_they_have_alone(
    sam: Sam, settings: dict[str, Any]
) -> None:
    samples, embeddings = photographs()
    found = []
    for batches in ([samples], [[each] for each in samples]):
        at = embeddings.clone().requires_grad_()
        sam.zero_grad()
        rest = at
        parts = []
        for batch in batches:
            here, rest = rest[: len(batch)], rest[len(batch) :]
            given = {"prompts": "mixed", "correction_rounds": 2, "seed": 0, **settings}
            parts.append(mask_losses(sam, batch, here, **given).total)
        torch.cat(parts).sum().backward()
        found.append([torch.cat(parts).detach(), at.grad, *(p.grad for p in sam.mask_decoder.parameters())])
    for together, alone in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_the_decoder_is_asked_for_all_prompts_of_as_many_tokens_at_once(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, embeddings = photographs()
    with recording(monkeypatch) as turns, counting(monkeypatch) as calls:
        mask_losses(sam, samples, embeddings, prompts="mixed", correction_rounds=1, seed=0)
    kinds = [{asked.prompts.labels.shape[1] for asked, _ in turn} for turn in turns]
    assert len(calls) == sum(len(tokens) for tokens in kinds) < sum(len(turn) for turn in turns)
    assert sum(calls) == 3 * 11


def test_the_point_sampled_loss_approximates_that_of_all_pixels(sam: Sam) -> None:
    whole, sampled = (losses(sam, sample(), prompts="evs", point_sample=count) for count in (0, 5000))
    torch.testing.assert_close(sampled.dice, whole.dice, rtol=0.1, atol=0.02)
    torch.testing.assert_close(sampled.focal, whole.focal, rtol=0.3, atol=0.02)


def test_point_sampling_upsamples_nothing(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    inner = F.interpolate

    def watched(given: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        sides.append(size[0])
        return inner(given, size, mode=mode)

    monkeypatch.setattr(F, "interpolate", watched)
    losses(sam, sample(), point_sample=50)
    assert set(sides) == {32}
