"""Weights of other projects: a plain ViT under each family's names becomes our encoder, token by token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from exports import export, export_sam
from sam_blvit.checkpoint.foreign import read_plain_vit, resize_patches
from sam_blvit.checkpoint.format import CheckpointError
from sam_blvit.checkpoint.load import load_sam, read_metadata
from sam_blvit.commands import import_weights as command
from sam_blvit.commands.import_weights import import_weights
from sam_blvit.config import ImportConfig, ModelConfig, override
from sam_blvit.model.build import build_sam
from sam_blvit.system.files import file_sha256

Config = Callable[..., ModelConfig]
Refused = Callable[[type[Exception], str], AbstractContextManager[Any]]
DIM, HEADS, LAYERS, GRID = 32, 2, 4, 8


class PlainViT(nn.Module):
    """A pre-norm ViT written for reading, under the names of DINOv2 at Hugging Face; patches of `side` pixels."""

    def __init__(self, side: int = 16, grid: int = GRID, scaled: bool = True) -> None:
        super().__init__()
        self.side, self.scaled = side, scaled
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.cls_token": (1, 1, DIM),
            "embeddings.position_embeddings": (1, 1 + grid * grid, DIM),
            "embeddings.patch_embeddings.projection.weight": (DIM, 3, side, side),
            "embeddings.patch_embeddings.projection.bias": (DIM,),
            "layernorm.weight": (DIM,),
            "layernorm.bias": (DIM,),
        }
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}."
            for name, (out, inner) in {
                "attention.attention.query": (DIM, DIM),
                "attention.attention.key": (DIM, DIM),
                "attention.attention.value": (DIM, DIM),
                "attention.output.dense": (DIM, DIM),
                "mlp.fc1": (4 * DIM, DIM),
                "mlp.fc2": (DIM, 4 * DIM),
            }.items():
                shapes |= {f"{layer}{name}.weight": (out, inner), f"{layer}{name}.bias": (out,)}
            for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
                shapes[layer + name] = (DIM,)
            if scaled:
                shapes |= {f"{layer}layer_scale{half}.lambda1": (DIM,) for half in (1, 2)}
        torch.manual_seed(5)
        self.values = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, G * G, C) of `pixels`; without a class token, which SAM's encoder has no place for."""
        w = self.values
        name = "embeddings.patch_embeddings.projection."
        x = F.conv2d(pixels, w[name + "weight"], w[name + "bias"], stride=self.side).flatten(2).transpose(1, 2)
        x = x + w["embeddings.position_embeddings"][:, 1:]
        for i in range(LAYERS):
            x = x + self._scaled(f"encoder.layer.{i}.layer_scale1", self._attention(x, f"encoder.layer.{i}."))
            x = x + self._scaled(f"encoder.layer.{i}.layer_scale2", self._mlp(x, f"encoder.layer.{i}."))
        return x

    def _scaled(self, name: str, update: Tensor) -> Tensor:
        return update * self.values[f"{name}.lambda1"] if self.scaled else update

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), self.values[f"{name}.weight"], self.values[f"{name}.bias"], 1e-6)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.values[f"{name}.weight"], self.values[f"{name}.bias"])

    def _attention(self, x: Tensor, layer: str) -> Tensor:
        x = self._normed(x, layer + "norm1")
        q, k, v = (
            self._linear(x, f"{layer}attention.attention.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-2, -1) / (DIM // HEADS) ** 0.5).softmax(-1)
        return self._linear((weights @ v).transpose(1, 2).flatten(2), layer + "attention.output.dense")

    def _mlp(self, x: Tensor, layer: str) -> Tensor:
        return self._linear(
            F.gelu(self._linear(self._normed(x, layer + "norm2"), layer + "mlp.fc1")), layer + "mlp.fc2"
        )


def as_timm(vit: PlainViT) -> dict[str, Tensor]:
    """The weights under the names of timm and the original repositories."""
    renamed: dict[str, Tensor] = {"head.weight": torch.ones(2, DIM), "head.bias": torch.ones(2)}
    pairs = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    for name, value in vit.values.items():
        for theirs, ours in pairs.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    for i in range(LAYERS):
        for suffix in ("weight", "bias"):
            parts = [renamed.pop(f"blocks.{i}.attention.attention.{p}.{suffix}") for p in ("query", "key", "value")]
            renamed[f"blocks.{i}.attn.qkv.{suffix}"] = torch.cat(parts)
    return renamed


def as_hugging_face_vit(vit: PlainViT) -> dict[str, Tensor]:
    """The weights under the names of Hugging Face's ViT, within a model with a head."""
    pairs = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed: dict[str, Tensor] = {"classifier.weight": torch.ones(2, DIM)}
    for name, value in vit.values.items():
        for theirs, ours in pairs.items():
            name = name.replace(theirs, ours)
        renamed[f"vit.{name}"] = value
    return renamed


FAMILIES: dict[str, tuple[Callable[[PlainViT], dict[str, Tensor]], bool]] = {
    "hugging_face_dinov2": (lambda vit: {f"dinov2.{name}": value for name, value in vit.values.items()}, True),
    "hugging_face_vit": (as_hugging_face_vit, False),
    "timm": (as_timm, True),
    "timm_unscaled": (as_timm, False),
}


@pytest.fixture
def plain(tiny_dense: Config) -> ModelConfig:
    """A dense config of the plain ViT's size that attends globally in every layer."""
    return tiny_dense(dim=DIM, heads=HEADS, layers=LAYERS, global_layers=tuple(range(1, LAYERS + 1)))


def write(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save({"model": state}, path)
    return path


@torch.no_grad()
def tokens_of(path: Path, config: ModelConfig, pixels: Tensor) -> Tensor:
    """Tokens (B, G * G, C) that leave the last layer of our encoder with the weights in `path`."""
    encoder = build_sam(config).image_encoder
    found = {name.removeprefix("image_encoder."): value for name, value in read_plain_vit(path, config).items()}
    missing, unexpected = encoder.load_state_dict(found, strict=False)
    assert not unexpected
    assert all(name.startswith("neck.") for name in missing)
    return encoder.encode(pixels, features_of=(LAYERS,)).features[LAYERS].flatten(1, 2)


@pytest.mark.filterwarnings("ignore:.*unwrapped")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_the_source(plain: ModelConfig, tmp_path: Path, family: str, suffix: str) -> None:
    rename, scaled = FAMILIES[family]
    vit = PlainViT(scaled=scaled)
    pixels = torch.randn(2, 3, 128, 128)
    found = tokens_of(write(rename(vit), tmp_path / f"vit{suffix}"), plain, pixels)
    torch.testing.assert_close(found, vit(pixels), rtol=1e-4, atol=1e-3)


def test_an_exported_vit_gives_its_weights_too(plain: ModelConfig, tmp_path: Path) -> None:
    class Exported(nn.Module):
        """The plain ViT with parameters, as linear layers: the exporter folds their weights."""

        def __init__(self, vit: PlainViT) -> None:
            super().__init__()
            self.backbone = nn.Module()
            for name, value in vit.values.items():
                *path, last = name.split(".")
                module = self.backbone
                for part in path:
                    if part not in module._modules:
                        module.add_module(part, nn.Module())
                    module = module._modules[part]  # type: ignore[assignment]
                module.register_parameter(last, nn.Parameter(value))
            self.vit = vit

        def forward(self, pixels: Tensor) -> Tensor:
            self.vit.values = {name.removeprefix("backbone."): value for name, value in self.named_parameters()}
            return self.vit(pixels)

    vit = PlainViT()
    expected = vit(pixels := torch.randn(1, 3, 128, 128))
    path = export(Exported(vit).eval(), {"pixels": pixels}, tmp_path / "vit.onnx")
    torch.testing.assert_close(tokens_of(path, plain, pixels), expected, rtol=1e-4, atol=1e-3)


# patches and positions -----------------------------------------------------------------------------------------------


def test_a_resized_kernel_answers_a_resized_patch_as_the_old_one_answered_the_patch() -> None:
    kernel, patches = torch.randn(5, 3, 14, 14), torch.randn(7, 3, 14, 14)
    larger = F.interpolate(patches, (16, 16), mode="bilinear")
    found = torch.einsum("nchw,kchw->nk", larger, resize_patches(kernel, 16))
    torch.testing.assert_close(found, torch.einsum("nchw,kchw->nk", patches, kernel), rtol=1e-4, atol=1e-4)


def test_a_kernel_of_the_right_size_stays_as_it_is() -> None:
    kernel = torch.randn(5, 3, 16, 16)
    assert resize_patches(kernel, 16) is kernel


def test_positions_are_interpolated_and_those_of_other_tokens_dropped(plain: ModelConfig, tmp_path: Path) -> None:
    vit = PlainViT(grid=5)
    table = vit.values["embeddings.position_embeddings"]
    table[:, 0] = 1e6  # the class token's
    path = write(vit.values, tmp_path / "vit.safetensors")
    found = read_plain_vit(path, plain)["image_encoder.pos_embed"]
    square = table[:, 1:].unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (GRID, GRID), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(found, expected)


# strictness ----------------------------------------------------------------------------------------------------------


def test_what_has_no_place_in_the_encoder_is_named(plain: ModelConfig, tmp_path: Path, refused: Refused) -> None:
    state = {**PlainViT().values, "encoder.layer.1.adapter.weight": torch.ones(2, 2)}
    path = write(state, tmp_path / "vit.safetensors")
    with refused(CheckpointError, r"1 tensors that have no place in SAM's encoder: encoder\.layer\.1\.adapter\.weight"):
        read_plain_vit(path, plain)


def test_a_file_of_something_else_is_named(plain: ModelConfig, tmp_path: Path, refused: Refused) -> None:
    path = write({"conv1.weight": torch.ones(2, 2)}, tmp_path / "resnet.safetensors")
    with refused(CheckpointError, r"names no part of a plain ViT \(conv1\.weight\)"):
        read_plain_vit(path, plain)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, plain: ModelConfig) -> None:
    """The command's model of this name is small, and enlarges its embedding."""
    small = {"vit_s": override(plain, name="vit_s", enlarge=2), "blvit_tiny": None}
    real = command.model_config
    monkeypatch.setattr(command, "model_config", lambda name: small.get(name) or real(name))


@pytest.mark.usefixtures("registry")
def test_a_missing_part_is_named(tmp_path: Path, refused: Refused) -> None:
    state = PlainViT().values
    del state["encoder.layer.2.attention.attention.key.bias"], state["encoder.layer.0.norm2.weight"]
    path = write(state, tmp_path / "vit.safetensors")
    config = ImportConfig(encoder=path, output=tmp_path / "start.safetensors")
    with refused(CheckpointError, r"blocks\.0\.norm2\.weight, image_encoder\.blocks\.2\.attn\.qkv\.bias missing"):
        import_weights("vit_s", config)
    assert not config.output.exists()


@pytest.mark.usefixtures("registry")
def test_another_width_is_named(tmp_path: Path, refused: Refused) -> None:
    state = {**PlainViT().values, "encoder.layer.0.mlp.fc1.weight": torch.ones(3, 3)}
    path = write(state, tmp_path / "vit.safetensors")
    with refused(CheckpointError, r"blocks\.0\.mlp\.lin1\.weight \(3, 3\) instead of \(128, 32\) of the wrong shape"):
        import_weights("vit_s", ImportConfig(encoder=path, output=tmp_path / "start.safetensors"))


# the command ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registry")
def test_encoder_and_decoder_become_one_checkpoint_of_ours(tmp_path: Path) -> None:
    source, _, decoder = export_sam(tmp_path, side=128, cell=8)
    encoder = write(PlainViT().values, tmp_path / "vit.safetensors")
    output = tmp_path / "start.safetensors"
    with pytest.warns(UserWarning, match=r"untrained in .*start\.safetensors: neck, enlargement$"):
        import_weights("vit_s", ImportConfig(encoder=encoder, decoder=decoder, output=output))
    sam = load_sam(output)
    assert sam.config.enlarge == 2
    for name, value in source.state_dict().items():
        if name.startswith("mask_decoder."):
            torch.testing.assert_close(sam.state_dict()[name], value, rtol=0, atol=0)
    lineage = read_metadata(output)
    assert lineage["imported_encoder_sha256"] == file_sha256(encoder)
    assert lineage["imported_decoder_sha256"] == file_sha256(decoder)


def test_weights_go_into_the_dense_form(tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, "blvit_tiny is a big.LITTLE model; import into its dense form"):
        import_weights("blvit_tiny", ImportConfig(encoder=tmp_path / "vit.pth", output=tmp_path / "out.safetensors"))


def test_something_must_be_imported(tmp_path: Path, refused: Refused) -> None:
    with refused(ValueError, "neither encoder nor decoder is given"):
        ImportConfig(output=tmp_path / "out.safetensors")
