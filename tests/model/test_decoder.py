"""The decoder gives segment_anything's masks for every kind of prompt, in bounded memory, and lets others be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from segment_anything import modeling as sa
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from sam_blvit.config import MODELS, override
from sam_blvit.model import decoder as module
from sam_blvit.model.build import build_sam
from sam_blvit.model.decoder import decode, decode_above, decode_originally, enlarge, predict_masks
from sam_blvit.model.sam import Sam

P, SIDE = 5, 64


@pytest.fixture
def sam(randomize: Callable[[nn.Module], nn.Module]) -> Sam:
    sam = build_sam(override(MODELS["blvit_tiny"], image_size=SIDE, window=2))
    randomize(sam.mask_decoder)
    randomize(sam.prompt_encoder)
    return sam


@pytest.fixture
def embedding() -> Tensor:
    return torch.randn(1, 256, SIDE // 16, SIDE // 16)


def points(n: int, prompts: int = P) -> tuple[Tensor, Tensor]:
    return torch.rand(prompts, n, 2) * SIDE, torch.randint(0, 2, (prompts, n))


def boxes(prompts: int = P) -> Tensor:
    return torch.rand(prompts, 4) * SIDE


def masks(prompts: int = P) -> Tensor:
    return torch.randn(prompts, 1, SIDE // 4, SIDE // 4)


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "one prompt": lambda: {"points": points(1, 1)},
    "no prompt": lambda: {},
    "points": lambda: {"points": points(3)},
    "boxes": lambda: {"boxes": boxes()},
    "boxes and points": lambda: {"points": points(2), "boxes": boxes()},
    "masks": lambda: {"points": points(1), "masks": masks()},
    "masks alone": lambda: {"masks": masks()},
    "one mask for all": lambda: {"points": points(1), "masks": masks(1)},
    "many points": lambda: {"points": points(20)},
}
KIND = pytest.mark.parametrize("kind", KINDS)


def theirs(sam: sa.Sam, embedding: Tensor, *, multimask_output: bool, **prompt: Any) -> tuple[Tensor, Tensor]:
    """What segment_anything's own forward answers."""
    sparse, dense = sam.prompt_encoder(**{"points": None, "boxes": None, "masks": None, **prompt})
    return sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output)


def assert_close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def own_forwards(sam: sa.Sam, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows as the decoder's own transformer runs."""
    calls: list[int] = []
    forward = sa.TwoWayTransformer.forward

    def counted(self: nn.Module, image: Tensor, positions: Tensor, tokens: Tensor) -> Any:
        calls.append(len(tokens))
        return forward(self, image, positions, tokens)

    monkeypatch.setattr(sa.TwoWayTransformer, "forward", counted)
    return calls


@KIND
@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_logits_and_predicted_iou_are_segment_anythings(
    sam: Sam, embedding: Tensor, kind: str, multimask_output: bool
) -> None:
    prompt = KINDS[kind]()
    ours = decode(sam, embedding, **prompt, multimask_output=multimask_output)
    assert_close(ours, theirs(sam, embedding, **prompt, multimask_output=multimask_output))


@pytest.mark.parametrize("kind", ["points", "masks"])
def test_gradients_are_segment_anythings(sam: Sam, embedding: Tensor, kind: str) -> None:
    prompt = KINDS[kind]()
    found = []
    for decoded in (decode, theirs):
        sam.zero_grad(set_to_none=True)
        at = embedding.clone().requires_grad_()
        logits, predicted = decoded(sam, at, **prompt, multimask_output=True)
        (logits.square().mean() + predicted.square().mean()).backward()
        parts = {**dict(sam.mask_decoder.named_parameters()), **dict(sam.prompt_encoder.named_parameters())}
        found.append({"embedding": at.grad, **{name: value.grad for name, value in parts.items()}})
    ours, expected = found
    unused = {name for name in expected if name.startswith("output_hypernetworks_mlps.0.")}  # the mask not asked for
    for name in expected.keys() - unused:
        if expected[name] is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(
                ours[name], expected[name], rtol=1e-3, atol=1e-4 * expected["embedding"].abs().max().item(), msg=name
            )


@torch.no_grad()
def test_all_four_outputs_are_segment_anythings(sam: Sam, embedding: Tensor) -> None:
    sparse, dense = sam.prompt_encoder(points=points(2), boxes=None, masks=None)
    given = {
        "image_embeddings": embedding,
        "image_pe": sam.prompt_encoder.get_dense_pe(),
        "sparse_prompt_embeddings": sparse,
        "dense_prompt_embeddings": dense,
    }
    ours = predict_masks(sam.mask_decoder, **given)
    assert ours[0].shape == (P, 4, SIDE // 4, SIDE // 4)
    assert_close(ours, sam.mask_decoder.predict_masks(**given))


@torch.no_grad()
def test_the_image_is_projected_once_for_all_prompts(
    sam: Sam, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_forwards(sam, monkeypatch)
    seen: list[int] = []
    project = nn.Linear.forward

    def spy(self: nn.Linear, x: Tensor) -> Tensor:
        if x.shape[-2] == embedding[0, 0].numel():
            seen.append(len(x))
        return project(self, x)

    monkeypatch.setattr(nn.Linear, "forward", spy)
    decode(sam, embedding, points=points(1), multimask_output=True)
    assert seen == [1, 1, 1]  # keys, values and queries of layer 1
    assert own == []


# chunks --------------------------------------------------------------------------------------------------------------


@KIND
@torch.no_grad()
def test_chunks_answer_as_one(sam: Sam, embedding: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = KINDS[kind]()
    expected = decode(sam, embedding, **prompt, multimask_output=True)
    for budget in (1, 2 * module._bytes_of_a_prompt(embedding, 30)):
        monkeypatch.setattr(module, "CHUNK_BYTES", budget)
        assert_close(decode(sam, embedding, **prompt, multimask_output=True), expected)


def test_gradients_pass_through_chunks(sam: Sam, embedding: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = KINDS["points"]()
    found = []
    for budget in (module.CHUNK_BYTES, 1):
        monkeypatch.setattr(module, "CHUNK_BYTES", budget)
        at = embedding.clone().requires_grad_()
        decode(sam, at, **prompt, multimask_output=True)[0].square().mean().backward()
        found.append(at.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["points", "masks"])
@torch.no_grad()
def test_memory_does_not_grow_with_the_number_of_prompts(
    sam: Sam, embedding: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * module._bytes_of_a_prompt(embedding, 12))
    attend = module.run_transformer
    largest: list[int] = []

    def spy(decoder: nn.Module, *given: Tensor) -> tuple[Tensor, Tensor]:
        largest.append(max(len(value) for value in given))
        return attend(decoder, *given)

    monkeypatch.setattr(module, "run_transformer", spy)
    for prompts in (8, 40):
        largest.clear()
        prompt = {"points": points(1, prompts), **({"masks": masks(prompts)} if kind == "masks" else {})}
        decode(sam, embedding, **prompt, multimask_output=True)
        assert len(largest) >= prompts // 6
        assert max(largest) <= 6


@torch.no_grad()
def test_a_prompt_takes_about_the_memory_it_is_said_to(sam: Sam) -> None:
    sam.prompt_encoder.image_embedding_size = (32, 32)
    embedding = torch.randn(1, 256, 32, 32)
    prompt = points(1, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        decode(sam, embedding, points=prompt, multimask_output=True)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert 0.5 < peak / (8 * module._bytes_of_a_prompt(embedding, 9)) < 1.2


@pytest.mark.parametrize("binary", [True, False])
@torch.no_grad()
def test_masks_are_enlarged_in_chunks_as_at_once(sam: Sam, binary: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 3, 16, 16)
    expected = sam.postprocess_masks(logits, (48, 64), (30, 40))
    seen: list[int] = []
    postprocess = sam.postprocess_masks

    def spy(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
        seen.append(len(logits))
        return postprocess(logits, *sizes)

    monkeypatch.setattr(sam, "postprocess_masks", spy)
    monkeypatch.setattr(module, "CHUNK_BYTES", 250_000)
    found = enlarge(sam, logits, (48, 64), (30, 40), binary=binary)
    assert torch.equal(found, expected > sam.mask_threshold if binary else expected)
    assert sum(seen) == 7
    assert 1 < len(seen) < 7


# masks of high predicted IoU alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [module.CHUNK_BYTES, 1])
@torch.no_grad()
def test_only_masks_above_the_least_predicted_iou_are_made(
    sam: Sam, embedding: Tensor, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", budget)
    prompt = points(1, 9)
    logits, predicted = decode(sam, embedding, points=prompt, multimask_output=True)
    least = predicted.amax(dim=1).median().item()  # half of the prompts have none
    made = 0
    draw = module.mask_logits

    def spy(decoder: Any, tokens: Tensor, *rest: Any) -> Tensor:
        nonlocal made
        made += len(tokens)
        return draw(decoder, tokens, *rest)

    monkeypatch.setattr(module, "mask_logits", spy)
    found, their_iou, above = decode_above(sam, embedding, prompt, least)
    assert torch.equal(above, predicted > least)
    assert_close((found, their_iou), (logits[above], predicted[above]))
    assert made == above.any(dim=1).sum() < 9


@torch.no_grad()
def test_where_no_mask_is_good_enough_none_is_made(sam: Sam, embedding: Tensor) -> None:
    logits, predicted, above = decode_above(sam, embedding, points(1), 1e9)
    assert logits.shape == (0, SIDE // 4, SIDE // 4)
    assert predicted.shape == (0,)
    assert not above.any()


# decoders that are not segment_anything's own ------------------------------------------------------------------------


class Halved(sa.MaskDecoder):
    """A foreign decoder: half of every logit."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        logits, predicted = super().forward(*args, **kwargs)
        return logits / 2, predicted


class Lowered(nn.Linear):
    """A foreign projection, as adapters like LoRA put them in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 1


def subclassed(sam: Sam) -> None:
    sam.mask_decoder.__class__ = Halved


def adapted(sam: Sam) -> None:
    sam.mask_decoder.transformer.layers[1].cross_attn_token_to_image.k_proj.__class__ = Lowered


def listened_to(sam: Sam) -> None:
    sam.mask_decoder.transformer.layers[0].norm4.register_forward_hook(lambda _module, _given, out: out * 2)


def patched(sam: Sam) -> None:
    forward = sam.mask_decoder.iou_prediction_head.forward
    sam.mask_decoder.iou_prediction_head.forward = lambda x: forward(x) + 1


def without_bias(sam: Sam) -> None:
    sam.mask_decoder.transformer.layers[1].cross_attn_image_to_token.q_proj.bias = None


def rewritten(sam: Sam) -> None:
    predict = sam.mask_decoder.predict_masks
    sam.mask_decoder.predict_masks = lambda **given: tuple(2 * each for each in predict(**given))


def quantized(sam: Sam) -> None:
    class Coarse(nn.Parameter):  # as a quantized tensor presents itself
        __tensor_flatten__ = __tensor_unflatten__ = None

    head = sam.mask_decoder.iou_prediction_head.layers[0]
    head.weight = Coarse(head.weight.round(decimals=1))


@pytest.mark.parametrize("change", [subclassed, adapted, listened_to, patched, without_bias, rewritten, quantized])
@torch.no_grad()
def test_a_decoder_that_was_changed_answers_by_its_own_forward(
    sam: Sam, embedding: Tensor, change: Callable[[Sam], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = KINDS["points"]()
    before = decode(sam, embedding, **prompt, multimask_output=True)
    change(sam)
    own = own_forwards(sam, monkeypatch)
    logits, predicted = decode(sam, embedding, **prompt, multimask_output=True)
    assert own == [P]
    expected = theirs(sam, embedding, **prompt, multimask_output=True)
    assert torch.equal(logits, expected[0])
    assert torch.equal(predicted, expected[1])
    assert not (torch.equal(logits, before[0]) and torch.equal(predicted, before[1]))
    above = decode_above(sam, embedding, prompt["points"], 0.0)
    assert torch.equal(above[0], logits[predicted > 0])


@torch.no_grad()
def test_prompts_of_many_points_run_sams_own_forward(
    sam: Sam, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_forwards(sam, monkeypatch)
    decode(sam, embedding, points=points(10), multimask_output=True)
    assert own == []
    decode(sam, embedding, points=points(11), multimask_output=True)
    assert own == [P]


def test_a_users_compiled_decoder_runs(sam: Sam, embedding: Tensor, graphs: CompileCounter) -> None:
    prompt = KINDS["points"]()
    with torch.no_grad():
        expected = decode(sam, embedding, **prompt, multimask_output=True)
        sam.mask_decoder.compile()
        assert_close(decode(sam, embedding, **prompt, multimask_output=True), expected)
    assert graphs.frame_count > 0


@torch.no_grad()
def test_an_embedding_that_is_no_square_runs_sams_own_forward(
    sam: Sam, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_forwards(sam, monkeypatch)
    wide = {name: torch.randn(1, embedding.shape[1], 4, 16) for name in ("image_embeddings", "image_pe")}
    prompts = {
        "sparse_prompt_embeddings": torch.randn(2, 2, embedding.shape[1]),
        "dense_prompt_embeddings": torch.randn(2, embedding.shape[1], 4, 16),
    }
    logits, _ = predict_masks(sam.mask_decoder, **wide, **prompts)
    assert own == [2]
    assert logits.shape[-2:] == (16, 64)


@pytest.mark.parametrize(
    ("prompt", "numbers"),
    [
        ({"points": points(1, 1), "boxes": boxes(5)}, "1 points, 1 labels, 5 boxes"),
        ({"points": points(1, 5), "boxes": boxes(7)}, "5 points, 5 labels, 7 boxes"),
        ({"points": points(1, 5), "masks": masks(7)}, "5 points, 5 labels, 7 masks"),
        ({"points": (points(1, 5)[0], points(1, 7)[1])}, "5 points, 7 labels"),
        ({"boxes": boxes(1), "masks": masks(5)}, "1 boxes, 5 masks"),
    ],
)
def test_prompts_of_different_numbers_are_refused(
    sam: Sam, embedding: Tensor, refused: Any, prompt: dict[str, Any], numbers: str
) -> None:
    with refused(ValueError, f"prompts of different numbers: {numbers}; give one of every kind for each prompt"):
        decode(sam, embedding, **prompt, multimask_output=True)


@torch.no_grad()
def test_sams_own_way_and_ours_agree(sam: Sam, embedding: Tensor) -> None:
    prompt = KINDS["boxes and points"]()
    ours = decode(sam, embedding, **prompt, multimask_output=True)
    assert_close(ours, decode_originally(sam, embedding, **prompt, multimask_output=True))


# bfloat16 ------------------------------------------------------------------------------------------------------------


@KIND
@torch.no_grad()
def test_under_autocast_answers_are_float32_and_close(sam: Sam, embedding: Tensor, kind: str) -> None:
    prompt = KINDS[kind]()
    exact = decode(sam, embedding, **prompt, multimask_output=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = decode(sam, embedding, **prompt, multimask_output=True)
    for mine, other in zip(rough, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).std() < 0.05 * other.std()


@torch.no_grad()
def test_under_autocast_norms_work_in_float32(sam: Sam, embedding: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    inner = torch.nn.functional.layer_norm

    def spy(x: Tensor, *args: Any) -> Tensor:
        seen.append(x.dtype)
        return inner(x, *args)

    monkeypatch.setattr(torch.nn.functional, "layer_norm", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decode(sam, embedding, points=points(1), multimask_output=True)
    assert len(seen) == 10
    assert set(seen) == {torch.float32}


@torch.no_grad()
def test_a_decoder_of_bfloat16_weights_answers(sam: Sam, embedding: Tensor) -> None:
    prompt = KINDS["points"]()
    exact = decode(sam, embedding, **prompt, multimask_output=True)
    sam.mask_decoder.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = decode(sam, embedding.bfloat16(), **prompt, multimask_output=True)
    assert (rough[0] - exact[0]).std() < 0.1 * exact[0].std()


@torch.no_grad()
def test_a_decoder_and_prompt_encoder_of_bfloat16_weights_answer(sam: Sam, embedding: Tensor) -> None:
    prompt = KINDS["points"]()
    exact = decode(sam, embedding, **prompt, multimask_output=True)
    for part in (sam.prompt_encoder, sam.mask_decoder):
        part.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = decode(sam, embedding.bfloat16(), **prompt, multimask_output=True)
    assert (rough[0] - exact[0]).std() < 0.2 * exact[0].std()


@torch.no_grad()
def test_under_autocast_the_least_predicted_iou_is_not_rounded(sam: Sam, embedding: Tensor) -> None:
    prompt = KINDS["points"]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, predicted = decode(sam, embedding, **prompt, multimask_output=True)
        least = predicted.max().item() - 1e-5
        assert torch.tensor(least).bfloat16() == predicted.max()  # rounded it would not be below
        assert len(decode_above(sam, embedding, prompt["points"], least)[0])
