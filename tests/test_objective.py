from collections.abc import Callable
from pathlib import Path

import torch

from sam_blvit.config import ModelConfig
from sam_blvit.data.sa1b import Sa1bDataset, find_pairs
from sam_blvit.model.build import build_sam
from sam_blvit.train.objective import training_loss, valid_tokens
from synthetic import write_flat


def test_tokens_are_valid_where_more_than_half_lies_on_the_photograph() -> None:
    valid = valid_tokens([torch.zeros(3, 24, 41), torch.zeros(3, 64, 64)], grid=4)
    assert valid[0].tolist() == [[1, 1, 1, 0], [0] * 4, [0] * 4, [0] * 4]
    assert valid[1].min() == 1


def test_the_loss_depends_on_the_seed_and_not_on_the_order_of_images(
    tmp_path: Path, tiny: Callable[..., ModelConfig]
) -> None:
    pairs = find_pairs(write_flat(tmp_path, range(3), size=(64, 64)))
    dataset = Sa1bDataset(pairs, image_size=128, mask_side=32, masks_per_image=3)
    samples = [dataset[(0, i)] for i in range(3)]
    sam = build_sam(tiny())
    losses = [
        training_loss(sam, None, chosen, distillation_weight=0, seed=[seed])["loss"]
        for chosen, seed in ((samples, 0), (samples[::-1], 0), (samples, 1))
    ]
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0] != losses[2]
