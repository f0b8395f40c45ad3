"""Training does what it is for: a model that starts from nothing learns four photographs by heart.

Everything is real: the reader of tars, prompts, losses, the whole dial of keep ratios, the trainer's loop, the file
that it writes, and the evaluator. Each photograph has two bright rectangles, so that brightness alone is no answer:
the prompt says which. A minute on one core.
"""

from __future__ import annotations

import pytest

from conftest import TINY
from sam_blvit.checkpoint.load import load_sam
from sam_blvit.commands.finetune import finetune
from sam_blvit.config import MODELS, FinetuneConfig, compose, override
from sam_blvit.data.sources import Source, training_source
from sam_blvit.evaluate.in_training.validation import Validation
from sam_blvit.system.distributed import Processes
from sam_blvit.train.loop import MODEL_FILE
from synthetic import write_tar

APART = (0, 6, 8, 9)
"""Synthetic photographs of 64 x 64 pixels whose two masks do not overlap."""
KEEP_RATIOS = (0.0, 0.125, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """mIoU of the trained model on what it was trained on, percent, at the photographs' own size."""
    root = tmp_path_factory.mktemp("overfit")
    for image_id in APART:
        write_tar(root / "data" / f"sa_00000{image_id}.tar", range(image_id, image_id + 1), size=(64, 64), masks=2)
    config = compose(
        FinetuneConfig,
        model="blvit_tiny",
        data=root / "data",
        output=root / "run",
        device="cpu",
        workers=0,
        batch_size=len(APART),
        schedule_steps=120,
        mask_side=64,
        correction_rounds=0,
        keep_ratios=KEEP_RATIOS,
        lr=2e-3,
        encoder_lr=2e-3,
        decoder_lr=1e-3,
        prompt_lr=1e-3,  # nothing is pretrained
        drop_path=0.0,
        weight_decay=0.0,
        log_every=120,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "blvit_tiny", override(TINY, name="blvit_tiny"))
        finetune(config)
    source: Source = training_source(config.data)
    assert not any((a.mask(64, 64) & b.mask(64, 64)).any() for a, b in (source.read(i).instances for i in range(4)))
    validation = Validation.of(config, source, processes=Processes())
    assert validation is not None
    return validation(load_sam(config.run.output / MODEL_FILE), keep_ratios=(0.25, 1.0))


@pytest.mark.parametrize("keep_ratio", ["0.25", "1"])
@pytest.mark.parametrize("prompt", ["box", "1pt", "3pt"])
def test_four_photographs_are_learned_by_heart(scores: dict[str, float], prompt: str, keep_ratio: str) -> None:
    assert scores[f"val@{keep_ratio}/held/{prompt}"] > 85
