"""One training step's loss: encode, compare with the teacher, answer simulated prompts, compare with the masks.

Shapes:
    B  images    G  tokens along a side    L  side of a mask at the resolution of the loss, pixels
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam_blvit.config import PATCH_SIZE
from sam_blvit.data.sa1b import Sample
from sam_blvit.model.sam import Sam
from sam_blvit.train.losses import distillation_loss, mask_loss
from sam_blvit.train.simulate import Prompts, draw_prompts


def training_loss(
    student: Sam, teacher: Sam | None, samples: list[Sample], *, distillation_weight: float, seed: list[int]
) -> dict[str, Tensor]:
    """Scalars by name: `loss`, which is to be minimised, and its parts, each a mean over masks or valid tokens.

    Prompts depend on `seed` and each image's id alone.
    """
    device = student.device
    images = [sample.image.to(device).float() for sample in samples]
    embeddings = student.encode_images(images)  # (B, 256, G, G)
    losses = _prompt_losses(student, samples, embeddings, seed)
    losses["loss"] = losses["mask"]
    if teacher is not None:
        with torch.no_grad():
            target = teacher.encode_images(images)
        losses["distillation"] = distillation_loss(embeddings, target, valid_tokens(images, embeddings.shape[-1]))
        losses["loss"] = losses["loss"] + distillation_weight * losses["distillation"]
    return losses


def valid_tokens(images: list[Tensor], grid: int) -> Tensor:
    """(B, G, G), 1 for tokens more than half of which lies on the photograph."""
    valid = images[0].new_zeros(len(images), grid, grid)
    for i, image in enumerate(images):
        rows, cols = (max(1, (side + PATCH_SIZE // 2 - 1) // PATCH_SIZE) for side in image.shape[-2:])
        valid[i, :rows, :cols] = 1
    return valid


def _prompt_losses(sam: Sam, samples: list[Sample], embeddings: Tensor, seed: list[int]) -> dict[str, Tensor]:
    image_size = sam.image_encoder.img_size
    parts: dict[str, list[Tensor]] = {"mask": [], "focal": [], "dice": [], "iou": []}
    for sample, embedding in zip(samples, embeddings, strict=True):
        entropy = np.random.SeedSequence([*seed, sample.image_id]).generate_state(1)[0]
        generator = torch.Generator().manual_seed(int(entropy))
        for prompts in draw_prompts(sample, image_size, generator):
            logits, iou = predict_all(sam, embedding[None], prompts)
            target = sample.masks[prompts.masks].to(embedding.device)
            side = target.shape[-1]
            valid = target.new_zeros(side, side)
            valid[: sample.valid[0], : sample.valid[1]] = True
            logits = F.interpolate(logits.float(), (side, side), mode="bilinear")
            weights = {"single": prompts.single.to(embedding.device), "multi": prompts.multi.to(embedding.device)}
            loss = mask_loss(logits, iou, target, valid=valid, **weights)
            for name, values in (("mask", loss.total), ("focal", loss.focal), ("dice", loss.dice), ("iou", loss.iou)):
                parts[name].append(values)
    return {name: torch.cat(values).mean() for name, values in parts.items()}


def predict_all(sam: Sam, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Logits (P, 4, 4G, 4G) and predicted IoU (P, 4) of every head of the decoder."""
    device = embedding.device
    boxes = None if prompts.boxes is None else prompts.boxes.to(device)
    points = None if prompts.points is None else (prompts.points[0].to(device), prompts.points[1].to(device))
    with torch.autocast(device.type, enabled=False):  # coordinates want more than bf16's eight bits
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        positions = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
