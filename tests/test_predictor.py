"""Our predictor answers as segment_anything's does, takes more photographs and explains bad prompts."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter

from sam_blvit.config import MODELS, override
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.predictor import SamPredictor

SHAPES = [(96, 96), (90, 120), (200, 150)]
"""Square, 4:3 and 3:4."""


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return build_sam(override(MODELS["blvit_tiny"], image_size=128, window=2))


@pytest.fixture(scope="module")
def ready(sam: Sam) -> SamPredictor:
    """A predictor on a photograph of 120 x 90 pixels (width x height)."""
    predictor = SamPredictor(sam)
    predictor.set_image(_photograph(90, 120))
    return predictor


def _photograph(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


PROMPTS: list[dict[str, Any]] = [
    {"point_coords": np.array([[30.3, 40.7]]), "point_labels": np.array([1])},
    {"point_coords": np.array([[30, 40], [5, 6]]), "point_labels": np.array([1, 0]), "multimask_output": False},
    {"box": np.array([10.1, 20.2, 70.3, 80.4]), "multimask_output": False},
    {"box": np.array([[-3, 20, 70, 300]])},
    {"point_coords": np.array([[-7, 900], [20, 20]]), "point_labels": np.array([1, 0])},
    {
        "point_coords": np.array([[30, 40]]),
        "point_labels": np.array([1]),
        "box": np.array([10, 20, 70, 80]),
        "mask_input": np.random.default_rng(0).normal(size=(1, 32, 32)),
        "return_logits": True,
    },
    {},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_results_are_the_originals(sam: Sam, shape: tuple[int, int], image_format: str) -> None:
    ours, original = SamPredictor(sam), segment_anything.SamPredictor(sam)
    for predictor in (ours, original):
        predictor.set_image(_photograph(*shape), image_format)
    assert torch.equal(ours.get_image_embedding(), original.get_image_embedding())
    for prompt in PROMPTS:
        for mine, theirs in zip(ours.predict(**prompt), original.predict(**prompt), strict=True):
            assert mine.dtype == theirs.dtype
            if mine.dtype == bool:
                assert (mine != theirs).mean() < 1e-3  # a logit of 0 may fall on either side
            else:
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_any_number_of_prompts_is_answered_in_chunks(ready: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: dict[str, Any] = {
        "point_coords": torch.rand(9, 2, 2) * 90,
        "point_labels": torch.tensor([[1, 0]] * 9),
        "boxes": torch.tensor([[5.0, 6, 70, 80]] * 9),
        "mask_input": torch.randn(9, 1, 32, 32),
    }
    at_once = ready.predict_torch(**prompts)
    decoded = []
    predict = ready.model.prompt_encoder.forward

    def spy(points: Any, boxes: Any, masks: Any) -> Any:
        decoded.append(len(boxes))
        return predict(points=points, boxes=boxes, masks=masks)

    monkeypatch.setattr(ready.model.prompt_encoder, "forward", spy)
    monkeypatch.setattr("sam_blvit.model.decoder.CHUNK_BYTES", 2_500_000)
    masks, iou, logits = ready.predict_torch(**prompts)
    assert sum(decoded) == 9
    assert 2 <= len(decoded) < 9
    assert masks.shape == (9, 3, 90, 120)
    assert (masks != at_once[0]).float().mean() < 1e-3
    torch.testing.assert_close((iou, logits), at_once[1:], rtol=1e-4, atol=1e-5)


def test_asking_for_tensors_before_an_image_is_set_says_so(sam: Sam) -> None:
    with pytest.raises(ValueError, match="call set_image"):
        SamPredictor(sam).predict_torch(torch.zeros(1, 1, 2), torch.ones(1, 1))


def test_no_box_has_no_masks(ready: SamPredictor) -> None:
    masks, iou, logits = ready.predict_torch(None, None, boxes=torch.zeros(0, 4))
    assert (masks.shape, iou.shape, logits.shape) == ((0, 3, 90, 120), (0, 3), (0, 3, 32, 32))


def test_a_caller_may_run_it_in_bfloat16(ready: SamPredictor) -> None:
    prompt = {"point_coords": [[30, 40]], "point_labels": [1]}
    exact = ready.predict(**prompt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = ready.predict(**prompt)
    assert [part.dtype for part in rough] == [part.dtype for part in exact]
    np.testing.assert_allclose(rough[1], exact[1], atol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_original_predictor_runs_on_our_model(sam: Sam, shape: tuple[int, int]) -> None:
    original = segment_anything.SamPredictor(sam)
    original.set_image(_photograph(*shape))
    masks, iou, logits = original.predict(point_coords=np.array([[30, 40]]), point_labels=np.array([1]))
    assert masks.shape == (3, *shape)
    assert masks.dtype == bool
    assert iou.shape == (3,)
    assert logits.shape == (3, 32, 32)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("method", ["__init__", "set_image", "set_torch_image", "predict", "predict_torch"])
def test_parameters_are_the_originals(method: str) -> None:
    mine, theirs = (
        [(p.name, p.default) for p in inspect.signature(getattr(predictor, method)).parameters.values()]
        for predictor in (SamPredictor, segment_anything.SamPredictor)
    )
    assert mine == theirs


def test_every_kind_of_image_embeds_as_its_rgb(sam: Sam) -> None:
    rgb = _photograph(48, 64)
    grey = rgb[:, :, 0]
    cases = [
        (rgb, [Image.fromarray(rgb), np.dstack([rgb, grey])]),
        (np.stack([grey] * 3, axis=-1), [grey, grey[:, :, None], Image.fromarray(grey)]),
    ]
    predictor = SamPredictor(sam)
    for plain, same in cases:
        predictor.set_image(plain)
        expected = predictor.get_image_embedding()
        for image in same:
            predictor.set_image(image)
            assert torch.equal(predictor.get_image_embedding(), expected)


def test_bgr_with_alpha_embeds_as_its_rgb(sam: Sam) -> None:
    rgb = _photograph(48, 64)
    predictor = SamPredictor(sam)
    predictor.set_image(rgb)
    expected = predictor.get_image_embedding()
    predictor.set_image(np.dstack([rgb[:, :, ::-1], rgb[:, :, 0]]), image_format="BGR")
    assert torch.equal(predictor.get_image_embedding(), expected)


@pytest.mark.parametrize("shape", [(10000, 1), (1, 10000), (1, 1)])
def test_the_thinnest_images_have_masks(sam: Sam, shape: tuple[int, int]) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(np.full((*shape, 3), 128, np.uint8))
    masks, iou, _ = predictor.predict([[0, 0]], [1], box=[0, 0, shape[1], shape[0]])
    assert masks.shape == (3, *shape)
    assert np.isfinite(iou).all()


def test_points_of_a_thin_image_keep_their_place(sam: Sam) -> None:
    placed = SamPredictor(sam).transform.apply_coords(np.array([[0.5, 5000.0]]), (10000, 1))
    np.testing.assert_allclose(placed, [[0.5, 64]])


def test_no_float64_reaches_the_device(ready: SamPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready.transform.apply_coords(np.array([[1.0, 2.0]]), (90, 120)).dtype == np.float32
    assert ready.transform.apply_boxes(np.array([1.0, 2.0, 3.0, 4.0]), (90, 120)).dtype == np.float32
    seen = []
    original = torch.as_tensor

    def spy(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(np.asarray(data).dtype)
        return original(data, *args, **kwargs)

    monkeypatch.setattr(torch, "as_tensor", spy)
    ready.predict(np.array([[1.0, 2.0]]), np.array([1.0]), np.array([1.0, 2, 3, 4]), np.zeros((1, 32, 32)))
    assert len(seen) == 4
    assert np.float64 not in seen


def test_lists_are_prompts_too(ready: SamPredictor) -> None:
    as_lists = ready.predict([[30, 40]], [1], [1, 2, 50, 60])
    as_arrays = ready.predict(np.array([[30, 40]]), np.array([1]), np.array([1, 2, 50, 60]))
    for mine, theirs in zip(as_lists, as_arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ({"point_coords": [[1, 2]]}, "without point_labels"),
        ({"point_labels": [1]}, "without point_coords"),
        ({"point_coords": [[1, 2], [3, 4]], "point_labels": [1]}, r"\(1,\) for 2 points"),
        ({"point_coords": [[1, 2]], "point_labels": [[1]]}, r"\(1, 1\) for 1 points"),
        ({"point_coords": [1, 2], "point_labels": [1]}, r"shape \(2,\)"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, r"shape \(1, 3\)"),
        ({"point_coords": [[1, "a"]], "point_labels": [1]}, "point_coords is not an array of numbers"),
        ({"point_coords": [[1, 2], [3]], "point_labels": [1, 1]}, "point_coords is not an array of numbers"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "point label 2"),
        ({"point_coords": [[1, 2]], "point_labels": [0.5]}, "point label 0.5"),
        ({"point_coords": [[1, float("nan")]], "point_labels": [1]}, "point_coords has 1,nan"),
        ({"point_coords": [[float("inf"), 1]], "point_labels": [0]}, "point_coords has inf,1"),
        ({"point_coords": [[1e39, 1]], "point_labels": [1]}, "point_coords has 1e[+]39,1"),
        ({"box": [1, 2, 3]}, r"box of shape \(3,\)"),
        ({"box": [[1, 2, 3, 4], [1, 2, 3, 4]]}, r"box of shape \(2, 4\)"),
        ({"box": [50, 2, 3, 40]}, "box 50,2,3,40 has swapped corners"),
        ({"box": [5, 42, 30, 40]}, "box 5,42,30,40 has swapped corners"),
        ({"box": [1, 2, float("nan"), 4]}, "box 1,2,nan,4"),
        ({"box": [130, 2, 140, 4]}, "box 130,2,140,4 is outside the image of 120 x 90"),
        ({"box": [-9, -8, -7, -6]}, "box -9,-8,-7,-6 is outside"),
        ({"mask_input": np.zeros((1, 64, 64))}, r"mask_input of shape \(1, 64, 64\): \(1, 32, 32\)"),
        ({"mask_input": np.full((1, 32, 32), np.nan)}, "mask_input has NaN"),
    ],
)
def test_a_prompt_that_cannot_be_right_is_named_in_one_line(
    ready: SamPredictor, prompt: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as error:
        ready.predict(**prompt)
    assert "\n" not in str(error.value)


def test_padding_points_change_nothing_but_may_stand_anywhere(ready: SamPredictor) -> None:
    near = ready.predict([[30, 40], [0, 0]], [1, -1])
    far = ready.predict([[30, 40], [-500, 9000]], [1, -1])
    np.testing.assert_array_equal(near[2], far[2])


def test_asking_before_an_image_is_set_says_so(sam: Sam) -> None:
    predictor = SamPredictor(sam)
    for ask in (lambda: predictor.predict([[1, 2]], [1]), predictor.get_image_embedding):
        with pytest.raises(ValueError, match="call set_image"):
            ask()
        with pytest.raises(RuntimeError, match="call set_image"):  # what the original raises
            ask()


@pytest.mark.parametrize("size", [(200.0, 150), (200,), (0, 150), "ab", 7, None])
def test_a_photographs_size_that_is_none_is_named(sam: Sam, size: Any) -> None:
    with pytest.raises(ValueError, match="original_image_size="):
        SamPredictor(sam).set_torch_image(torch.zeros(1, 3, 128, 96), size)


@pytest.mark.parametrize("size", [[200, 150], np.array([200, 150]), torch.Size([200, 150]), torch.tensor([200, 150])])
def test_a_photographs_size_may_have_another_type(sam: Sam, size: Any) -> None:
    predictor = SamPredictor(sam)
    predictor.set_torch_image(torch.zeros(1, 3, 128, 96), size)
    assert predictor.predict([[1, 2]], [1])[0].shape == (3, 200, 150)


def test_after_an_image_that_is_refused_the_earlier_one_does_not_answer(sam: Sam) -> None:
    predictor = SamPredictor(sam)
    refused: list[Any] = [
        lambda: predictor.set_image(np.zeros((8, 8, 3), np.float32)),
        lambda: predictor.set_image(_photograph(48, 64), image_format="HSV"),
        lambda: predictor.set_torch_image(torch.zeros(2, 3, 128, 96), (48, 64)),
    ]
    for mistake in refused:
        predictor.set_image(_photograph(48, 64))
        with pytest.raises(ValueError, match=r"float32|HSV|\(2, 3, 128, 96\)"):
            mistake()
        with pytest.raises(ValueError, match="call set_image"):
            predictor.predict([[1, 2]], [1])


def test_threads_get_masks_of_one_photograph_each(sam: Sam) -> None:
    predictor = SamPredictor(sam)
    photographs = [_photograph(48, 64), _photograph(64, 40)]
    expected = {}
    for photograph in photographs:
        predictor.set_image(photograph)
        expected[photograph.shape[:2]] = predictor.predict([[9, 9]], [1])[2]
    stop = threading.Event()

    def keep_setting() -> None:
        while not stop.is_set():
            for photograph in photographs:
                predictor.set_image(photograph)

    with ThreadPoolExecutor(1) as pool:
        setting = pool.submit(keep_setting)
        answers = [predictor.predict([[9, 9]], [1]) for _ in range(20)]
        stop.set()
        setting.result()
    for masks, _, logits in answers:
        np.testing.assert_allclose(logits, expected[masks.shape[1:]], rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_answer_alike(ready: SamPredictor) -> None:
    logits = ready.predict([[1, 2]], [1])[2]
    for same in (copy.copy(ready), copy.deepcopy(ready), pickle.loads(pickle.dumps(ready))):
        np.testing.assert_allclose(same.predict([[1, 2]], [1])[2], logits, rtol=1e-4, atol=1e-5)


def test_the_encoding_of_the_image_is_kept_until_the_next(sam: Sam) -> None:
    predictor = SamPredictor(sam)
    assert predictor.encoding is None
    predictor.set_image(_photograph(90, 120))
    expected = sam.encode_photograph(_photograph(90, 120))
    assert predictor.encoding is not None
    assert torch.equal(predictor.encoding.embedding, expected.embedding)
    assert list(predictor.encoding.routings) == list(expected.routings) != []
    assert predictor.features is predictor.encoding.embedding
    predictor.reset_image()
    assert predictor.encoding is None


class _Wrapper(torch.nn.Module):
    """An encoder around another, such as quantisation or torch.compile puts there."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.img_size = encoder.img_size
        self.padded_size = encoder.padded_size
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.encoder(images)


def test_hooks_on_the_encoder_and_encoders_around_it_run(sam: Sam) -> None:
    plain, photograph = SamPredictor(sam), _photograph(90, 120)
    plain.set_image(photograph)
    hooked, seen = SamPredictor(copy.deepcopy(sam)), []
    hooked.model.image_encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    hooked.set_image(photograph)
    assert seen == [hooked.features]
    wrapped = SamPredictor(copy.deepcopy(sam))
    wrapped.model.image_encoder = _Wrapper(wrapped.model.image_encoder)
    wrapped.set_image(photograph)
    assert wrapped.model.image_encoder.calls == 1
    for predictor in (hooked, wrapped):
        assert torch.equal(predictor.features, plain.features)
        assert predictor.encoding is None


def test_an_encoder_is_compiled_on_request(graphs: CompileCounter) -> None:
    torch.manual_seed(0)
    sam = build_sam(override(MODELS["blvit_tiny"], image_size=128, window=2))
    photograph = _photograph(96, 96)
    eager = SamPredictor(sam)
    eager.set_image(photograph)
    assert graphs.frame_count == 0
    predictor = SamPredictor(sam)
    predictor.compile()
    predictor.set_image(photograph)
    assert graphs.frame_count == 1
    assert predictor.encoding is None
    torch.testing.assert_close(predictor.features, eager.features)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((1, 3, 150, 200), "height 150 and width 200: a longest side of 128"),
        ((1, 3, 64, 96), "height 64 and width 96: a longest side of 128"),
        ((1, 64, 128, 3), r"\(1, 64, 128, 3\): \(1, 3, height, width\) is expected"),
        ((3, 64, 128), r"\(3, 64, 128\): \(1, 3, height, width\) is expected"),
        ((2, 3, 64, 128), r"\(2, 3, 64, 128\): \(1, 3, height, width\) is expected"),
        ((1, 1, 64, 128), r"\(1, 1, 64, 128\): \(1, 3, height, width\) is expected"),
    ],
)
def test_a_tensor_of_another_size_is_refused_by_its_height_and_width(
    sam: Sam, shape: tuple[int, ...], named: str, refused: Callable[..., Any]
) -> None:
    with refused(ValueError, named):
        SamPredictor(sam).set_torch_image(torch.zeros(shape), (64, 128))
