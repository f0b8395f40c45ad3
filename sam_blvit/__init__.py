"""Segment Anything with a big.LITTLE image encoder: a drop-in under `SamPredictor`, fast by routing tokens."""

from sam_blvit.allocator import tune_allocator
from sam_blvit.checkpoint import CheckpointError, build_sam, load_sam, sam_model_registry, save_plain_sam, save_sam
from sam_blvit.config import MODELS, ModelConfig
from sam_blvit.everything import SamAutomaticMaskGenerator
from sam_blvit.model.compiled import compile_encoder
from sam_blvit.predictor import SamPredictor

__version__ = "0.1.0"
__all__ = [
    "MODELS",
    "CheckpointError",
    "ModelConfig",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "compile_encoder",
    "load_sam",
    "sam_model_registry",
    "save_plain_sam",
    "save_sam",
    "tune_allocator",
]
