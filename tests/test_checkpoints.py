"""Folders of models that a stranger has written, that are being written, or whose writer was killed."""

import json
import os
import shutil
import signal
import stat
import threading
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chrono_features import ChronoBackbone, checkpoints, files
from chrono_features.config import VIT_KWARGS
from chrono_features.folders import STAGING

FILES = ["README.md", "config.json", "model.safetensors"]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def load(folder):
    return ChronoBackbone.from_pretrained(folder)


@pytest.fixture
def folder(small_model, tmp_path):
    small_model().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def without_header(folder, change=lambda values: None):
    """A folder as version 0.4 wrote it, with a changed configuration."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"contents": "all"})


# --- A configuration from a file --------------------------------------------------------------------------------------


def test_the_folders_of_older_versions_load(folder):
    model = load(folder)
    without_header(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load(folder).parameters(), strict=True))


FOREIGN = {
    "a checkpoint": ({"checkpoint_path": "x.pth"}, "checkpoint_path"),
    "weights of another name": ({"pretrained_cfg": {"file": "x.pth"}}, "pretrained_cfg"),
    "an overlay": ({"pretrained_cfg_overlay": {"file": "x.pth"}}, "pretrained_cfg_overlay"),
    "a cache": ({"cache_dir": "/tmp"}, "cache_dir"),
    "an unknown key": ({"colour": 1}, "colour"),
    "zero heads": ({"num_heads": 0}, "num_heads"),
    "a class by name": ({"norm_layer": "a"}, "norm_layer"),
    "a mapping": ({"norm_layer": {"a": 1}}, "norm_layer"),
    "a list of lists": ({"img_size": [[32], 32]}, "img_size"),
    "a depth beyond any": ({"depth": 10**9}, "depth"),
    "a depth of text": ({"depth": "3"}, "depth"),
    "a width beyond any": ({"embed_dim": 10**400}, "embed_dim"),
    "another width": ({"embed_dim": 20_000}, r"misshapen keys: .*20000"),
    "a width that is not divisible": ({"embed_dim": 17}, "embed_dim"),
    "a negative width": ({"embed_dim": -16}, "embed_dim"),
    "a mlp beyond memory": ({"mlp_ratio": 1e9}, "mlp"),
    "a picture beyond memory": ({"img_size": 2**20}, "pos_embed"),
    "one colour": ({"in_chans": 1}, "in_chans"),
    "dropped patches": ({"patch_drop_rate": 0.5}, "patch_drop_rate"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_keyword_arguments_are_refused(folder, case):
    changes, message = FOREIGN[case]
    without_header(folder, lambda values: values["vit_kwargs"].update(changes))
    started = time.process_time()
    with pytest.raises(ValueError, match=rf"(?s)m(/config\.json)?.*{message}"):
        load(folder)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("vit", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/x", "../x", ""])
def test_foreign_vits_are_refused(folder, vit):
    without_header(folder, lambda values: values.update(vit=vit))
    with pytest.raises(ValueError, match=r"config\.json: vit="):
        load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("radius", 10**400), ("temperature", float("nan")), ("grid", [10**400, 8]), ("window", [2**70, 2]),
        ("adapter_channels", 2**40), ("adapter_heads", 0), ("adapter_stride", 2**20), ("adapter_blocks", [[0]]),
        ("mean", [10**400, 0, 0]), ("std", None), ("vit_kwargs", [1]), ("vit", 3), ("mixer", {}), ("stem", ["conv"]),
    ],
)  # fmt: skip
def test_odd_values_are_refused_by_name(folder, name, value):
    without_header(folder, lambda values: values.update({name: value}))
    with pytest.raises(ValueError, match=r"\bm\b"):
        load(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b"7", b"\xff", b"9" * 9999, b'{"radius": 1, "radius": 2}', b" " * (2**20 + 1),
        b"[" * 10**5, b'{"a":' * 10**5,
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_no_configuration(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(folder)


def test_no_code_runs(folder, tmp_path):
    """What timm before 1.0.26 does with a checkpoint that a configuration names."""

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": Payload()}, tmp_path / "extra.pth")
    without_header(folder, lambda values: values["vit_kwargs"].update(checkpoint_path=str(tmp_path / "extra.pth")))
    with pytest.raises(ValueError, match="checkpoint_path"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_the_keyword_arguments_are_those_of_a_network():
    import inspect

    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    known = {name for cls in (VisionTransformer, Eva) for name in inspect.signature(cls).parameters}
    no_plain_values = {"embed_layer", "block_fn", "mlp_layer", "device", "dtype"}
    assert known - VIT_KWARGS <= no_plain_values and not VIT_KWARGS & no_plain_values


@pytest.mark.parametrize("change", [{"embed_dim": 0}, {"img_size": ""}, {"num_heads": 0}, {"patch_size": [4, 4, 4]}])
def test_sizes_of_which_there_is_no_vit_name_the_folder(folder, change):
    without_header(folder, lambda values: values["vit_kwargs"].update(change))
    with pytest.raises(ValueError, match=rf"{folder.name}.*vit_kwargs|{folder.name}.*vit=.*{next(iter(change))}"):
        load(folder)


def test_an_overlay_of_the_users_own_is_not_saved(small_config, small_model, tmp_path):
    kwargs = {**small_config().vit_kwargs, "pretrained_cfg_overlay": {"file": "vit.safetensors"}}
    model = small_model(vit_kwargs=kwargs)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).config == small_config()
    overridden = ChronoBackbone.from_pretrained(tmp_path, vit_kwargs=kwargs)
    assert overridden.config.vit_kwargs["pretrained_cfg_overlay"] == {"file": "vit.safetensors"}
    with pytest.raises(ValueError, match=r"adapters_only=True with pretrained_cfg_overlay in vit_kwargs"):
        model.save_pretrained(tmp_path / "m", adapters_only=True)


def test_what_cannot_be_loaded_is_not_saved(small_config, small_model, tmp_path):
    kwargs = {**small_config().vit_kwargs, "no_jit": True}  # timm's, and not of a network
    with pytest.raises(ValueError, match="cannot be saved"):
        small_model(vit_kwargs=kwargs).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_adapters_of_a_vit_beyond_memory(small_model, tmp_path):
    small_model().save_pretrained(tmp_path, adapters_only=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["vit_kwargs"]["mlp_ratio"] = 1e6
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", {"contents": "adapters"})
    with pytest.raises(ValueError, match=r"vit_kwargs make vit_tiny_patch16_224 of \d+ parameters"):
        load(tmp_path)


# --- Weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.fill_(torch.nan), "1 keys with NaN or infinite values: vit.norm.bias"),
        (lambda v: v.index_fill_(0, torch.tensor([3]), -torch.inf), "NaN or infinite values: vit.norm.bias"),
        (lambda v: v.double().fill_(1e300), "NaN or infinite values: vit.norm.bias"),  # more than float32 has
        (lambda v: v.long(), r"dense floating-point tensors: vit.norm.bias torch.int64"),
        (lambda v: v.bool(), r"dense floating-point tensors: vit.norm.bias torch.bool"),
        (lambda v: v.to(torch.float8_e4m3fn), r"dense floating-point tensors: vit.norm.bias torch.float8"),
        (lambda v: v.to(torch.complex64), r"dense floating-point tensors: vit.norm.bias torch.complex64"),
    ],
)
def test_weights_that_are_none(folder, change, message):
    with safe_open(folder / "model.safetensors", "pt") as file:
        about = file.metadata()
    state = load_file(folder / "model.safetensors")
    state["vit.norm.bias"] = change(state["vit.norm.bias"])
    save_file(state, folder / "model.safetensors", about)
    with pytest.raises(ValueError, match=rf"m does not fit the model: .*{message}"):
        load(folder)


def test_a_weight_that_is_named_twice(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    name = next(name for name in header if name != "__metadata__")
    text = (json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}").encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    assert load_file(file).keys() == header.keys() - {"__metadata__"}  # safetensors itself takes the last
    with pytest.raises(ValueError, match=r"m/model\.safetensors is a truncated .* file: a key comes twice"):
        load(folder)


def test_large_but_finite_weights_load(small_model, tmp_path):
    model = small_model()
    model.vit.norm.bias.data.fill_(3e38)  # whose sum is infinite
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).vit.norm.bias, model.vit.norm.bias)


def test_rotary_tables_are_computed(tmp_path):
    """They are in no file, and a model that is built without memory has none."""
    kwargs = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    for vit in ("vit_small_patch16_dinov3.lvd1689m", "eva02_tiny_patch14_224"):
        config = {"vit": vit, "vit_kwargs": kwargs, "grid": (8, 8), "adapter_channels": 8, "adapter_heads": 2}
        model = ChronoBackbone(config)
        model.save_pretrained(tmp_path / vit)
        video = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(load(tmp_path / vit)(video), model(video), rtol=0, atol=0)


def test_loaded_weights_are_the_models_own(folder):
    """Not views of the file, which may be overwritten."""
    model = load(folder)
    before = [p.clone() for p in model.parameters()]
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(os.urandom(size))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [p.requires_grad for p in model.parameters()] == [
        not name.startswith("vit.") for name, _ in model.named_parameters()
    ]


# --- Two files that belong together -----------------------------------------------------------------------------------


def test_a_configuration_that_is_not_that_of_the_weights(small_model, folder, tmp_path):
    small_model(radius=2.0).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", folder / "config.json")
    with pytest.raises(ValueError, match=r"m/config\.json differs from the configuration in model\.safetensors"):
        load(folder)
    small_model(radius=3.0).save_pretrained(folder)
    assert load(folder).config.radius == 3.0


def test_the_same_configuration_in_another_form(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(values.items()))))
    assert load(folder).config.radius == 5.0


def pair(small_model):
    """Two models of equal shapes whose weights and configuration tell which is which."""
    models = [small_model(radius=float(k)) for k in (1, 2)]
    for k, model in enumerate(models, 1):
        model.visibility_head.linear.bias.data.fill_(k)
    return models


def mark(model):
    return model.config.radius, model.visibility_head.linear.bias[0].item()


def in_child(function):
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_at_every_rename(small_model, tmp_path, rename, after):
    old, new = pair(small_model)
    old.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    replace, calls = os.replace, []

    def killed(source, target):
        calls.append(target)
        if after:
            replace(source, target)
        if len(calls) == rename:
            os.kill(os.getpid(), signal.SIGKILL)
        if not after:
            replace(source, target)

    def save():
        files.os.replace = killed
        new.save_pretrained(tmp_path / "m")

    try:
        assert os.waitpid(in_child(save), 0)[1] == signal.SIGKILL
    finally:
        files.os.replace = replace
    expected = (1, 1) if (rename, after) == (1, False) else (2, 2)
    assert mark(load(tmp_path / "m")) == expected
    waiting = FILES[1:] if (rename, after) == (1, False) else [] if (rename, after) == (2, True) else ["config.json"]
    assert names(tmp_path / "m" / STAGING) == waiting
    new.save_pretrained(tmp_path / "m")
    assert names(tmp_path / "m") == [*FILES, "notes.txt"] and mark(load(tmp_path / "m")) == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("headers", [True, False], ids=["", "an older folder"])
def test_readers_beside_a_writer_see_one_or_the_other(small_model, tmp_path, headers):
    models = pair(small_model)
    models[0].save_pretrained(tmp_path / "m")
    if not headers:
        without_header(tmp_path / "m")

    def write():
        while True:
            for model in models:
                model.save_pretrained(tmp_path / "m")

    writer = in_child(write)
    try:
        seen = {mark(load(tmp_path / "m")) for _ in range(40)}
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert seen == {(1, 1), (2, 2)}
    models[0].save_pretrained(tmp_path / "m")
    assert names(tmp_path / "m") == FILES and mark(load(tmp_path / "m")) == (1, 1)


def test_writers_beside_each_other_lose_nothing(small_model, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    errors = []

    def write(model):
        try:
            for _ in range(15):
                model.save_pretrained(tmp_path / "m")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[model]) for model in pair(small_model)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and names(tmp_path / "m") == [*FILES, "notes.txt"]
    assert mark(load(tmp_path / "m")) in {(1, 1), (2, 2)}


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_stands_where_new_files_wait_is_removed_not_followed(small_model, folder, tmp_path, kind):
    staging = folder / STAGING
    if kind == "folder":
        staging.mkdir()
        (staging / "config.json").symlink_to(tmp_path)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "config.json").write_text("mine")
        staging.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(staging)
    assert load(folder).config.radius == 5.0
    small_model(radius=2.0).save_pretrained(folder)
    assert names(folder) == FILES and load(folder).config.radius == 2.0
    assert kind != "link" or (tmp_path / "elsewhere" / "config.json").read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_all_files_have_the_mode_of_the_umask(small_model, tmp_path, umask):
    previous = os.umask(umask)
    try:
        small_model().save_pretrained(tmp_path / "m")
    finally:
        os.umask(previous)
    assert {stat.S_IMODE((tmp_path / "m" / name).stat().st_mode) for name in FILES} == {0o666 & ~umask}


def test_what_is_no_folder_is_refused_before_anything_is_written(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: pytest.fail("too late"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "loop"):
        with pytest.raises(OSError, match=name):
            small_model().save_pretrained(tmp_path / name)
    (tmp_path / "m" / "config.json").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"config\.json is no regular file"):
        small_model().save_pretrained(tmp_path / "m")


def test_a_link_to_no_folder_yet(small_model, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    small_model().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == FILES


def test_the_folder_is_not_replaced(small_model, folder, monkeypatch):
    """A shell that stands in it, a mount point and a lock would be lost."""
    monkeypatch.chdir(folder)
    before = os.stat(folder).st_ino
    small_model(radius=2.0).save_pretrained(".")
    assert os.stat(folder).st_ino == before and names(folder) == FILES and load(".").config.radius == 2.0


def test_files_that_are_links_are_replaced(small_model, folder, tmp_path):
    """They may lead to a cache, or to anything."""
    for name in FILES:
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in FILES]
    small_model(radius=2.0).save_pretrained(folder)
    assert before == [(tmp_path / name).read_bytes() for name in FILES] and load(folder).config.radius == 2.0
    assert not (folder / "config.json").is_symlink() and (folder / "README.md").is_symlink()


def test_a_full_disk_names_the_file_and_keeps_the_old_model(small_model, folder):
    import resource

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            small_model(radius=2.0).save_pretrained(folder)
        except OSError as error:
            os._exit(7 if f"{folder}/model.safetensors" in str(error) else 8)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(save), 0)[1]) == 7
    assert names(folder) == FILES and load(folder).config.radius == 5.0
