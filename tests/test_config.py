import dataclasses
import json

import pytest

from chrono_features import ChronoConfig


def test_round_trip_through_json_keeps_every_field(small_config):
    config = small_config(adapter_blocks=(2, 0), input_size=(48, 64), window=(3, 1), neck="x2", out_channels=7)
    again = ChronoConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    for field in dataclasses.fields(config):
        assert type(getattr(again, field.name)) is type(getattr(config, field.name)), field.name


def test_weights_of_the_confidence_round_trip(small_config):
    config = small_config(confidence=[1, -2.5, 0.0, 3, 4], refined_confidence=(0.5, 1, 2, 3, 4, -5))
    assert config.confidence == (1, -2.5, 0.0, 3, 4) and config.refined_confidence == (0.5, 1, 2, 3, 4, -5)
    assert ChronoConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    old = {name: v for name, v in config.to_dict().items() if "confidence" not in name}
    assert ChronoConfig.from_dict(old) == config.replace(confidence=None, refined_confidence=None)


def test_replace_changes_only_what_it_is_told(small_config):
    config = small_config()
    changed = config.replace(grid=(4, 6))
    assert changed.grid == (4, 6) and config.grid == (8, 8)
    assert changed.replace(grid=(8, 8)) == config


def test_is_frozen_and_does_not_share_vit_kwargs():
    kwargs = {"depth": 2}
    config = ChronoConfig(vit_kwargs=kwargs)
    kwargs["depth"] = 3
    assert config.vit_kwargs["depth"] == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.grid = (1, 1)


@pytest.mark.parametrize(
    ("placement", "depth", "expected"),
    [
        ("all", 12, tuple(range(11))),
        ("early", 12, (0, 1, 2, 3, 4, 5)),
        ("late", 12, (6, 7, 8, 9, 10)),
        ("alternate", 12, (0, 2, 4, 6, 8, 10)),
        ("none", 12, ()),
        ("all", 1, ()),
        ("early", 4, (0, 1)),
        ("late", 4, (2,)),
        ((3, 1), 4, (1, 3)),
        ([0], 4, (0,)),
        ((), 4, ()),
    ],
)
def test_placements(placement, depth, expected):
    assert ChronoConfig(adapter_blocks=placement).adapter_indices(depth) == expected


@pytest.mark.parametrize("depth", range(1, 9))
def test_early_and_late_together_are_all(depth):
    early, late, every = (ChronoConfig(adapter_blocks=p).adapter_indices(depth) for p in ("early", "late", "all"))
    assert early + late == every and len(early) - len(late) in (0, 1)


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"adapter_blocks.*3 blocks"):
        ChronoConfig(adapter_blocks=(0, 3)).adapter_indices(3)


def test_unknown_keys_are_named():
    with pytest.raises(ValueError, match=r"unknown config keys \['gird'\].*; did you mean 'grid'\?$"):
        ChronoConfig.from_dict({"gird": (8, 8)})
    with pytest.raises(ValueError, match="gird"):
        ChronoConfig().replace(gird=(8, 8))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vit", ""),
        ("vit", None),
        ("vit_kwargs", [1]),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, float("nan"))),
        ("std", (1.0, 1.0, 0.0)),
        ("pos_embed_resize", "bilinear"),
        ("grid", 8),
        ("grid", (8,)),
        ("grid", (8, 0)),
        ("grid", (8.0, 8)),
        ("grid", (True, True)),
        ("input_size", (0, 256)),
        ("input_size", 256),
        ("adapter_blocks", "some"),
        ("adapter_blocks", (0, 0)),
        ("adapter_blocks", (-1,)),
        ("adapter_blocks", (0.5,)),
        ("adapter_blocks", 3),
        ("adapter_channels", 0),
        ("adapter_heads", 3),
        ("adapter_stride", 1.5),
        ("window", (-1, 2)),
        ("window", 6),
        ("mixer", "mlp"),
        ("norm", "batch"),
        ("stem", None),
        ("neck", "x4"),
        ("out_channels", 0),
        ("antialias", "no"),
        ("freeze_vit", 1),
        ("temperature", 0),
        ("temperature", "20"),
        ("radius", -1.0),
        ("visible_threshold", 1.01),
        ("refined_visible_threshold", -0.1),
        ("refined_visible_threshold", True),
        ("radius", float("inf")),
        ("confidence", (1.0, 2.0, 3.0, 4.0)),
        ("confidence", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
        ("confidence", (1.0, 2.0, 3.0, 4.0, float("nan"))),
        ("confidence", ("1", 2.0, 3.0, 4.0, 5.0)),
        ("confidence", (True, 2.0, 3.0, 4.0, 5.0)),
        ("confidence", 0.5),
        ("refined_confidence", (1.0, 2.0, 3.0, 4.0, 5.0)),
        ("refined_confidence", (1.0, 2.0, 3.0, 4.0, 5.0, float("inf"))),
        ("refined_confidence", {}),
    ],
)
def test_values_out_of_range_name_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}=.*expected"):
        ChronoConfig(**{field: value})
