"""The layers of an encoder: from a config to modules with fresh weights."""

from __future__ import annotations

from torch import nn

from sam_blvit.config import ModelConfig
from sam_blvit.model.big_little import BigLittleLayer
from sam_blvit.model.blocks import EfficiencyBlock, PerformanceBlock
from sam_blvit.model.variants import layer_class


def build_layer(config: ModelConfig, layer: int) -> PerformanceBlock:
    """Layer number `layer`, from 1: dense before `routed_from`, big.LITTLE from there on."""
    if config.routed_from is None or layer < config.routed_from:
        return PerformanceBlock(config.dim, num_heads=config.heads, table_size=_table_size(config, layer))
    little = None
    if layer in config.little_layers:
        little = EfficiencyBlock(
            config.dim,
            inner_dim=config.little_dim,
            num_heads=config.little_heads,
            table_size=_table_size(config, layer, little=True),
        )
    return layer_class(config)(
        config.dim,
        num_heads=config.heads,
        table_size=_table_size(config, layer),
        little=little,
        score_scaling=config.score_scaling,
    )


def init_layer(layer: PerformanceBlock) -> None:
    """ViT's initialisation. The last projections of an efficiency block are 0: training starts without it."""
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    if isinstance(layer, BigLittleLayer) and layer.little is not None:
        nn.init.zeros_(layer.little.attn.proj.weight)
        nn.init.zeros_(layer.little.mlp.leave.weight)


def _table_size(config: ModelConfig, layer: int, *, little: bool = False) -> int:
    return config.grid if config.attends_globally(layer, little=little) else config.rel_pos_window
