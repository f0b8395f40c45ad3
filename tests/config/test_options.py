"""Model fields given as NAME=VALUE: parsed by type, refused by name."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sam_blvit.config import ModelConfig, model_config, options
from sam_blvit.config.options import FLAGS, READERS, parse_options

Refused = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Switched(ModelConfig):
    """A model with a field of every type."""

    switch: bool = True


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dim=128", 128),
        ("keep_ratio=0.5", 0.5),
        ("keep_ratio=1", 1.0),
        ("router_scores=two_class", "two_class"),
        ("global_layers=3,6", (3, 6)),
        ("global_layers=3", (3,)),
        ("little_layers=", ()),
        ("routed_from=4", 4),
        ("routed_from=none", None),
        ("switch=true", True),
        ("switch=False", False),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(option: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "ModelConfig", Switched)
    (read,) = parse_options([option]).values()
    assert read == value
    assert type(read) is type(value)


def test_options_replace_fields_of_a_model() -> None:
    replaced = model_config("blvit_tiny", **parse_options(["dim=128", "heads=2", "little_layers=", "keep_ratio=0.5"]))
    assert (replaced.dim, replaced.heads, replaced.little_layers, replaced.keep_ratio) == (128, 2, (), 0.5)
    assert parse_options([]) == {}


def test_every_field_of_a_model_has_a_type_that_is_read() -> None:
    hints = typing.get_type_hints(ModelConfig)
    assert {field.name for field in dataclasses.fields(ModelConfig) if hints[field.name] not in READERS} == set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["dim"], "options: 'dim' is not NAME=VALUE, as in dim=128; in YAML, quote values with commas"),
        (["little_dims=4"], "options: 'little_dims=4': models have no field 'little_dims'; did you mean little_dim or"),
        (["colour=blue"], "options: 'colour=blue': models have no field 'colour'; the fields are name, dim, heads, "),
        (["=4"], "options: '=4': models have no field ''; the fields are "),
        (["dim=64", "heads=1", "dim=64"], "options: 'dim=64' repeats dim; name it once"),
        (["dim=wide"], "options: 'dim=wide' is invalid; dim must be a whole number"),
        (["dim=1.5"], "options: 'dim=1.5' is invalid; dim must be a whole number"),
        (["keep_ratio="], "options: 'keep_ratio=' is invalid; keep_ratio must be a number"),
        (["global_layers=3,,6"], "options: 'global_layers=3,,6' is invalid; global_layers must be comma-separated"),
        (["routed_from=no"], "options: 'routed_from=no' is invalid; routed_from must be a whole number or none"),
        (["switch=1"], "options: 'switch=1' is invalid; switch must be true or false"),
    ],
)
def test_an_option_that_cannot_be_is_named(
    given: list[str], message: str, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(options, "ModelConfig", Switched)
    with refused(ValueError, f"^{re.escape(message)}"):
        parse_options(given)


@pytest.mark.parametrize(("name", "flag"), FLAGS.items())
def test_there_is_one_way_to_give_what_has_a_setting_of_its_own(name: str, flag: str, refused: Refused) -> None:
    with refused(ValueError, f"options: '{name}=8' has its own setting; use {flag}$"):
        parse_options([f"{name}=8"])
