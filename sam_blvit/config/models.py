"""The registry: every model by name."""

from __future__ import annotations

import dataclasses

from sam_blvit.config.model import ModelConfig


def _dense(name: str, dim: int, heads: int, layers: int, global_layers: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(name=name, dim=dim, heads=heads, layers=layers, global_layers=global_layers)


VIT_B = _dense("vit_b", 768, 12, 12, (3, 6, 9, 12))
VIT_L = _dense("vit_l", 1024, 16, 24, (6, 12, 18, 24))
VIT_H = _dense("vit_h", 1280, 16, 32, (8, 16, 24, 32))
VIT_S = dataclasses.replace(
    # global in the second half: its features are then closest to those of DINOv2, which it starts from
    _dense("vit_s", 384, 6, 12, tuple(range(6, 13))),
    image_size=512,
    enlarge=2,
    window=16,
    rel_pos_window=16,
    neck_layers=(4,),
)
VIT_TINY = dataclasses.replace(
    _dense("vit_tiny", 192, 3, 12, (3, 6, 9, 12)), image_size=512, window=8, rel_pos_window=8
)

MODELS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        VIT_B,
        VIT_L,
        VIT_H,
        VIT_S,
        VIT_TINY,
        dataclasses.replace(
            VIT_B,
            name="blvit_b_t",
            window=16,
            routed_from=2,
            routers_after=(1, 4, 7, 10),
            little_layers=tuple(range(2, 13)),
            little_dim=192,
            little_heads=3,
        ),
        dataclasses.replace(
            VIT_L,
            name="blvit_l_s",
            window=16,
            routed_from=7,
            routers_after=(6, 12, 18),
            little_layers=tuple(range(7, 24, 2)),
            little_dim=384,
            little_heads=6,
        ),
        dataclasses.replace(
            VIT_H,
            name="blvit_h_b",
            window=16,
            routed_from=10,
            routers_after=(8, 16, 24),
            little_layers=tuple(range(10, 33, 2)),
            little_dim=768,
            little_heads=12,
        ),
        dataclasses.replace(
            VIT_S,
            name="blvit_s_t",
            routed_from=2,
            routers_after=(1, 4, 7, 10),
            little_layers=tuple(range(2, 13)),
            little_dim=96,
            little_heads=3,
        ),
        dataclasses.replace(
            VIT_TINY,
            name="blvit_tiny",
            routed_from=2,
            routers_after=(1, 4, 7, 10),
            little_layers=tuple(range(2, 13)),
            little_dim=64,
            little_heads=1,
        ),
    )
}
"""Models by registry name. vit_b, vit_l and vit_h are SAM's; vit_s, vit_tiny and their big.LITTLE versions are this
package's."""


def model_config(name: str, **overrides: object) -> ModelConfig:
    """Return the config of the registry model `name`, with fields replaced. Raises ValueError for unknown names."""
    if name not in MODELS:
        raise ValueError(f"no model named {name!r}; there are {', '.join(MODELS)}")
    return override(MODELS[name], **overrides)


def override(config: ModelConfig, **overrides: object) -> ModelConfig:
    """Return `config` with fields replaced. compute_dtype may be a torch dtype. Raises ValueError for unknown ones."""
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(config)})
    if unknown:
        raise ValueError(
            f"{config.name}: unknown option {', '.join(unknown)}; common options are window, image_size, "
            "keep_ratio and compute_dtype"
        )
    if not config.routed and overrides.get("keep_ratio", 1) != 1:
        raise ValueError(f"keep_ratio={overrides['keep_ratio']}: {config.name} is dense, its keep_ratio is always 1")
    if "compute_dtype" in overrides:
        overrides["compute_dtype"] = str(overrides["compute_dtype"]).removeprefix("torch.")
    return dataclasses.replace(config, **overrides)  # type: ignore[arg-type]
