"""`sam-blvit import`: converts weights of other projects to a checkpoint that training can start from."""

from __future__ import annotations

import warnings
from pathlib import Path

from sam_blvit.checkpoint.foreign import LEFT_FRESH, read_plain_vit
from sam_blvit.checkpoint.format import check_fit
from sam_blvit.checkpoint.load import save_sam
from sam_blvit.config import ImportConfig, ModelConfig, model_config
from sam_blvit.exported.decoder import read_decoder
from sam_blvit.model.build import build_sam
from sam_blvit.model.sam import Sam
from sam_blvit.system.files import check_inputs_stay, file_sha256

LINEAGE = "imported_{part}_sha256"
"""Key in the checkpoint's metadata: the hash of the file that a part was read from."""


def import_weights(model: str, config: ImportConfig) -> Path:
    """Write a checkpoint of `model` with the encoder and decoder given in `config`. The other parts stay untrained.

    Raises:
        ValueError: If a file does not fit. The message lists missing, unexpected and mis-shaped tensors.
    """
    check_inputs_stay([config.output], [config.encoder, config.decoder])
    settings = model_config(model)
    if settings.routed:
        raise ValueError(
            f"{model} is a big.LITTLE model; import into its dense form, then start it from that checkpoint"
        )
    sam = build_sam(settings)
    metadata: dict[str, str] = {}
    if config.encoder is not None:
        _fill_encoder(sam, config.encoder)
        metadata[LINEAGE.format(part="encoder")] = file_sha256(config.encoder)
    if config.decoder is not None:
        sam.load_state_dict(read_decoder(config.decoder, sam), strict=False)  # the reader is strict
        metadata[LINEAGE.format(part="decoder")] = file_sha256(config.decoder)
    save_sam(sam, config.output, metadata=metadata)
    warnings.warn(f"untrained in {config.output}: {', '.join(_untrained(config, settings))}", stacklevel=2)
    return config.output


def _untrained(config: ImportConfig, settings: ModelConfig) -> list[str]:
    """The parts that no file was given for."""
    parts = ["neck", *(["enlargement"] if settings.enlarge > 1 else [])]
    if config.encoder is None:
        parts = ["image encoder"]
    return parts if config.decoder is not None else [*parts, "prompt encoder", "mask decoder"]


def _fill_encoder(sam: Sam, path: Path) -> None:
    found = read_plain_vit(path, sam.config)
    expected = {name: value for name, value in sam.state_dict().items() if name.startswith("image_encoder.")}
    own = tuple(f"image_encoder.{part}" for part in LEFT_FRESH)
    check_fit(
        found, expected, what=f"{path} does not fit {sam.config.name}", may_lack=lambda name: name.startswith(own)
    )
    sam.load_state_dict(found, strict=False)
