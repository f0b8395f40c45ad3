"""Sam around the encoder: segment-anything's answers where it is SAM, batches, rectangles, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything import modeling as sa
from torch import Tensor, nn

from sam_blvit.config import ModelConfig
from sam_blvit.model.build import build_sam
from sam_blvit.model.decoder import decode
from sam_blvit.model.resize import Resize
from sam_blvit.model.sam import Sam

Config = Callable[..., ModelConfig]
Randomize = Callable[[nn.Module], nn.Module]
OriginalSam = Callable[[ModelConfig], sa.Sam]

SQUARE, FOUR_TO_THREE, UPRIGHT = (128, 128), (96, 128), (128, 64)
SHAPES = pytest.mark.parametrize("size", [SQUARE, FOUR_TO_THREE, UPRIGHT])


@pytest.fixture
def new_sam(tiny: Config, randomize: Randomize) -> Callable[..., Sam]:
    """A big.LITTLE Sam whose encoder has nothing at zero."""

    def build(**overrides: object) -> Sam:
        sam = build_sam(tiny(**overrides))
        randomize(sam.image_encoder)
        return sam

    return build


@pytest.fixture(params=["dense", "dense_padded", "keep_ratio_1_padded"])
def ours_and_theirs(
    request: pytest.FixtureRequest, tiny: Config, tiny_dense: Config, original_sam: OriginalSam
) -> tuple[Sam, sa.Sam]:
    """A model that must be SAM, and the SAM its weights come from."""
    window = 4 if request.param == "dense" else 3
    config = (tiny if request.param == "keep_ratio_1_padded" else tiny_dense)(window=window, rel_pos_window=window)
    theirs, ours = original_sam(config), build_sam(config)
    ours.load_state_dict(theirs.state_dict(), strict=not config.routed)
    ours.image_encoder.keep_ratio = 1
    return ours, theirs


def record(size: tuple[int, int]) -> dict[str, Any]:
    """One image with every kind of prompt, as `Sam.forward` takes it."""
    return {
        "image": torch.rand(3, *size) * 255,
        "original_size": (2 * size[0], 2 * size[1]),
        "point_coords": torch.tensor([[[30.0, 20.0]], [[50.0, 60.0]]]),
        "point_labels": torch.tensor([[1], [0]]),
        "boxes": torch.tensor([[5.0, 6.0, 40.0, 50.0], [10.0, 10.0, 60.0, 90.0]]),
        "mask_inputs": torch.randn(2, 1, 32, 32),
    }


def photograph(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def assert_same_masks(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    torch.testing.assert_close(ours["low_res_logits"], theirs["low_res_logits"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours["iou_predictions"], theirs["iou_predictions"], rtol=1e-3, atol=1e-4)
    assert ours["masks"].shape == theirs["masks"].shape
    assert (ours["masks"] == theirs["masks"]).float().mean() > 0.999  # a logit of 0 may fall on either side


# where it is SAM -----------------------------------------------------------------------------------------------------


@SHAPES
@pytest.mark.parametrize("multimask_output", [True, False])
def test_forward_equals_segment_anythings(
    ours_and_theirs: tuple[Sam, sa.Sam], size: tuple[int, int], multimask_output: bool
) -> None:
    ours, theirs = ours_and_theirs
    images = [record(size), record(SQUARE)]
    for answer, expected in zip(ours(images, multimask_output), theirs(images, multimask_output), strict=True):
        assert_same_masks(answer, expected)


@SHAPES
def test_segment_anythings_predictor_gives_the_same_masks(
    ours_and_theirs: tuple[Sam, sa.Sam], size: tuple[int, int]
) -> None:
    answers = []
    for sam in ours_and_theirs:
        predictor = SamPredictor(sam)
        predictor.set_image(photograph((3 * size[0], 3 * size[1])))
        masks, iou, logits = predictor.predict(point_coords=np.array([[90, 60]]), point_labels=np.array([1]))
        answers.append(
            {
                "masks": torch.from_numpy(masks),
                "iou_predictions": torch.from_numpy(iou),
                "low_res_logits": torch.from_numpy(logits),
            }
        )
    assert_same_masks(*answers)


def test_preprocessing_is_segment_anythings_square(ours_and_theirs: tuple[Sam, sa.Sam]) -> None:
    ours, theirs = ours_and_theirs
    image = torch.rand(2, 3, 40, 128) * 255
    assert torch.equal(ours.preprocess(image), theirs.preprocess(image))


@pytest.mark.parametrize("size", [(129, 128), (128, 200)])
def test_an_image_larger_than_the_input_is_refused_instead_of_cut(
    ours_and_theirs: tuple[Sam, sa.Sam], size: tuple[int, int]
) -> None:
    with pytest.raises(
        ValueError,
        match=rf"height {size[0]} and width {size[1]} is larger than .*'s input of 128 x 128; resize",
    ):
        ours_and_theirs[0].preprocess(torch.zeros(3, *size))


def test_an_image_with_its_colours_last_is_refused(
    ours_and_theirs: tuple[Sam, sa.Sam],
) -> None:
    with pytest.raises(ValueError, match=r"\(40, 128, 3\): \(..., 3, height, width\) is expected"):
        ours_and_theirs[0].preprocess(torch.zeros(40, 128, 3))


# big.LITTLE ----------------------------------------------------------------------------------------------------------


def test_preprocessing_pads_right_and_below_to_whole_windows(new_sam: Callable[..., Sam]) -> None:
    sam = new_sam()
    image = torch.rand(3, 40, 100) * 255
    padded = sam.preprocess(image)
    assert padded.shape == (3, 64, 128)
    assert torch.equal(padded[:, :40, :100], (image - sam.pixel_mean) / sam.pixel_std)
    assert not padded[:, 40:].any()
    assert not padded[:, :, 100:].any()


@SHAPES
def test_a_photograph_is_encoded_as_segment_anythings_predictor_does(
    new_sam: Callable[..., Sam], size: tuple[int, int]
) -> None:
    sam = new_sam()
    predictor = SamPredictor(sam)
    predictor.set_image(photograph(size))
    encoding = sam.encode_photograph(photograph(size))
    assert torch.equal(encoding.embedding, predictor.features)
    assert encoding.input_size == predictor.input_size
    assert set(encoding.routings) == set(sam.config.routers_after)
    assert not encoding.embedding.requires_grad


def test_a_resized_photograph_is_not_resampled(new_sam: Callable[..., Sam], monkeypatch: pytest.MonkeyPatch) -> None:
    sam = new_sam()
    pixels = photograph((301, 260))
    resized = Resize(sam.image_encoder.img_size).apply_image(pixels)
    expected = sam.encode_photograph(pixels)
    monkeypatch.setattr(Resize, "apply_image", None)  # calling it fails
    backwards = np.ascontiguousarray(resized[..., ::-1])[..., ::-1]  # as BGR read as RGB: torch takes no such strides
    for same in (resized, backwards, torch.from_numpy(resized).permute(2, 0, 1)):
        encoding = sam.encode_photograph(same)
        assert torch.equal(encoding.embedding, expected.embedding)
        assert encoding.input_size == expected.input_size == (128, 111)
    with pytest.raises(TypeError):
        sam.encode_photograph(pixels)


def test_a_photographs_features_and_benefits_are_the_encoders(new_sam: Callable[..., Sam]) -> None:
    sam = new_sam()
    pixels = photograph(UPRIGHT)
    found = sam.encode_photograph(pixels, features_of=(3,), with_benefits=True)
    with torch.no_grad():
        normalised = sam.preprocess(Resize(sam.image_encoder.img_size).to_tensor(pixels))
        expected = sam.image_encoder.encode(normalised[None], features_of=(3,), with_benefits=True)
    assert set(found.features) == {3}
    assert set(found.benefits) == set(sam.config.routers_after)
    torch.testing.assert_close((found.features, found.benefits), (expected.features, expected.benefits), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\) and dtype uint8: \(H, W, 3\) uint8 is expected"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "dtype float32"),
    ],
)
def test_pixels_that_are_no_photograph_are_named(
    new_sam: Callable[..., Sam], pixels: np.ndarray, named: str, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, named):
        new_sam().encode_photograph(pixels)


@SHAPES
def test_segment_anythings_predictor_runs_on_a_routed_model(new_sam: Callable[..., Sam], size: tuple[int, int]) -> None:
    sam = new_sam(compute_dtype="bfloat16")
    predictor = SamPredictor(sam)
    predictor.set_image(photograph(size))
    masks, iou, logits = predictor.predict(box=np.array([10, 10, 50, 60]))
    assert masks.shape == (3, *size)
    assert iou.dtype == logits.dtype == np.float32


def test_segment_anythings_mask_generator_runs_on_a_routed_model(new_sam: Callable[..., Sam]) -> None:
    generator = SamAutomaticMaskGenerator(
        new_sam(), points_per_side=2, pred_iou_thresh=-99, stability_score_thresh=-1, box_nms_thresh=1.1
    )
    found = generator.generate(photograph(FOUR_TO_THREE))
    assert found
    assert all(mask["segmentation"].shape == FOUR_TO_THREE for mask in found)


@pytest.mark.parametrize("size", [SQUARE, UPRIGHT])
def test_an_image_gives_the_same_mask_alone_and_in_a_batch(new_sam: Callable[..., Sam], size: tuple[int, int]) -> None:
    sam = new_sam()
    images = [record(size) for _ in range(3)]
    together = sam(images, multimask_output=True)
    assert_same_masks(sam(images[1:2], multimask_output=True)[0], together[1])


@pytest.mark.parametrize("others", [[SQUARE], [SQUARE, UPRIGHT], [FOUR_TO_THREE, UPRIGHT, FOUR_TO_THREE]])
def test_an_image_gives_the_same_mask_beside_other_shapes(
    new_sam: Callable[..., Sam], others: list[tuple[int, int]]
) -> None:
    sam = new_sam()
    batch = [record(size) for size in [*others, UPRIGHT, (64, 128)]]
    together = sam(batch, multimask_output=True)
    for one, answer in zip(batch, together, strict=True):
        assert_same_masks(sam([one], multimask_output=True)[0], answer)


def test_images_of_one_shape_are_encoded_on_their_rectangle(new_sam: Callable[..., Sam]) -> None:
    sam = new_sam()
    inputs: list[torch.Size] = []
    sam.image_encoder.register_forward_pre_hook(lambda _encoder, args: inputs.append(args[0].shape))
    with torch.no_grad():
        sam.encode_images([torch.rand(3, 50, 128), torch.rand(3, 64, 100)])
    assert inputs == [(2, 3, 64, 128)]


def test_mixed_shapes_give_masks_of_their_own_sizes(new_sam: Callable[..., Sam]) -> None:
    sizes = [SQUARE, FOUR_TO_THREE, UPRIGHT]
    answers = new_sam()([record(size) for size in sizes], multimask_output=False)
    assert [tuple(answer["masks"].shape) for answer in answers] == [(2, 1, 2 * h, 2 * w) for h, w in sizes]


# each in its own shape -----------------------------------------------------------------------------------------------


def mixed_images() -> list[Tensor]:
    """Of two padded sizes, in turn."""
    sizes = [(128, 60), SQUARE, (100, 64), FOUR_TO_THREE]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def test_images_are_encoded_by_shape_each_as_if_alone(new_sam: Callable[..., Sam]) -> None:
    sam, images = new_sam(), mixed_images()
    with torch.no_grad():
        groups = sam.encode_by_shape(images)
        assert [places for places, _ in groups] == [[0, 2], [1, 3]]
        for places, encoding in groups:
            for place, embedding in zip(places, encoding.embedding, strict=True):
                alone = sam.image_encoder(sam.preprocess(images[place])[None])[0]
                torch.testing.assert_close(embedding, alone, rtol=1e-4, atol=1e-4)


def test_each_image_of_a_shape_keeps_its_factors_and_features(new_sam: Callable[..., Sam]) -> None:
    sam, images = new_sam(), mixed_images()
    scale = torch.rand(4, 4, 2) * 2
    with torch.no_grad():
        for places, encoding in sam.encode_by_shape(images, branch_scale=scale, features_of=(3,)):
            for i, place in enumerate(places):
                alone = sam.image_encoder.encode(
                    sam.preprocess(images[place])[None], branch_scale=scale[place][None], features_of=(3,)
                )
                torch.testing.assert_close(encoding.features[3][i], alone.features[3][0], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(encoding.embedding[i], alone.embedding[0], rtol=1e-4, atol=1e-4)


# gradients -----------------------------------------------------------------------------------------------------------


def gradients_of_a_mask_loss(sam: Sam) -> dict[str, float]:
    """Largest gradient of each encoder parameter, 0 for none: a point on an upright image, a mask by the decoder."""
    sam.zero_grad()
    torch.manual_seed(1)
    embedding = sam.encode_images([torch.rand(3, *UPRIGHT) * 255])
    points = torch.tensor([[[30.0, 40.0]]]), torch.tensor([[1]])
    logits, _ = decode(sam, embedding, points=points, multimask_output=True)
    target = (torch.rand_like(logits) > 0.5).float()
    nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
    return {
        name: 0.0 if value.grad is None else value.grad.abs().max().item()
        for name, value in sam.image_encoder.named_parameters()
    }


def still(gradients: dict[str, float], part: str) -> list[str]:
    """Parameters with `part` in their name that get no gradient."""
    concerned = {name: size for name, size in gradients.items() if part in name}
    assert concerned
    return [name for name, size in concerned.items() if size == 0]


@pytest.mark.parametrize("window", [4, 3], ids=["whole", "padded"])
@pytest.mark.parametrize("part", ["routers.", "alpha_", "gamma_", ".little.", ".attn.", ".mlp.", "pos_embed", "neck."])
def test_a_mask_loss_reaches_every_part(new_sam: Callable[..., Sam], part: str, window: int) -> None:
    assert still(gradients_of_a_mask_loss(new_sam(window=window)), part) == []


def test_a_mask_loss_on_a_rectangle_reaches_the_vector_for_the_outside(new_sam: Callable[..., Sam]) -> None:
    assert still(gradients_of_a_mask_loss(new_sam()), "outside") == []


def test_at_alpha_0_the_loss_moves_alpha_and_no_router(new_sam: Callable[..., Sam]) -> None:
    sam = new_sam()
    for name, value in sam.image_encoder.named_parameters():
        if "alpha_" in name:
            nn.init.zeros_(value)
    gradients = gradients_of_a_mask_loss(sam)
    assert still(gradients, "alpha_") == []
    assert still(gradients, "routers.") == ["routers.0.score.weight", "routers.2.score.weight"]


def test_after_one_step_routers_have_a_gradient_too(tiny: Config) -> None:
    sam = build_sam(tiny())
    gradients_of_a_mask_loss(sam)
    torch.optim.SGD(sam.parameters(), lr=0.1).step()
    sam.zero_grad()
    assert still(gradients_of_a_mask_loss(sam), "alpha_") == []
    assert still(gradients_of_a_mask_loss(sam), "routers.") == []


def test_a_fresh_model_learns_its_efficiency_blocks_last_projections_first(tiny: Config) -> None:
    gradients = gradients_of_a_mask_loss(build_sam(tiny()))
    assert still(gradients, ".little.attn.proj.weight") == []
    assert still(gradients, ".little.mlp.leave.weight") == []
    assert still(gradients, "alpha_") == []


# what is asked and what it is converted to ----------------------------------------------------------------------------


def test_no_image_has_no_masks(new_sam: Callable[..., Sam]) -> None:
    assert new_sam()([], multimask_output=True) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"point_labels": None}, "point_coords without point_labels"),
        ({"point_labels": torch.tensor([[7], [1]])}, "point_labels has 7"),
        ({"point_coords": torch.full((2, 1, 2), torch.nan)}, "point_coords holds NaN"),
        ({"boxes": torch.zeros(2, 3)}, r"boxes of shape \(2, 3\)"),
        ({"boxes": torch.zeros(0, 2)}, r"boxes of shape \(0, 2\)"),
        ({"mask_inputs": torch.zeros(2, 1, 8, 8)}, r"mask_input of shape \(2, 1, 8, 8\)"),
    ],
)
def test_a_wrong_prompt_of_a_batch_is_named(
    new_sam: Callable[..., Sam], changed: dict[str, Any], named: str, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, named):
        new_sam()([record(SQUARE) | changed], multimask_output=True)


@pytest.mark.parametrize(
    "convert",
    [
        lambda sam: sam.half(),
        lambda sam: sam.bfloat16(),
        lambda sam: sam.double(),
        lambda sam: sam.to(torch.float16),
        lambda sam: sam.to("cpu", torch.bfloat16),
        lambda sam: nn.Sequential(sam).half(),
        lambda sam: sam.image_encoder.half(),
        lambda sam: sam.image_encoder.to(torch.bfloat16),
    ],
)
def test_parameters_of_another_dtype_are_refused_and_nothing_changes(
    new_sam: Callable[..., Sam], convert: Callable[[Sam], Any], refused: Callable[..., Any]
) -> None:
    sam = new_sam()
    with refused(ValueError, "compute_dtype="):
        convert(sam)
    assert {value.dtype for value in sam.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("part", ["prompt_encoder", "mask_decoder"])
def test_a_part_of_another_dtype_is_named_when_it_is_asked(
    new_sam: Callable[..., Sam], part: str, refused: Callable[..., Any]
) -> None:
    sam = new_sam()
    getattr(sam, part).bfloat16()
    with refused(
        ValueError, rf"{part} cannot be torch.bfloat16: parameters stay float32; for speed set .*compute_dtype="
    ):
        sam([record(SQUARE)], multimask_output=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which takes care of dtypes
        (answer,) = sam([record(SQUARE)], multimask_output=True)
    assert answer["iou_predictions"].isfinite().all()


@pytest.mark.parametrize(
    "convert", [lambda sam: sam.float(), lambda sam: sam.to("cpu"), lambda sam: sam.to("cpu", torch.float32)]
)
def test_a_model_may_be_moved_and_stays_itself(new_sam: Callable[..., Sam], convert: Callable[[Sam], Sam]) -> None:
    sam = new_sam()
    assert convert(sam) is sam
    assert new_sam().to("meta").device.type == "meta"
