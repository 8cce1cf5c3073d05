import json
import os
import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chrono_features import ChronoBackbone, authors, checkpoints
from chrono_features.authors import read_authors
from chrono_features.extras import how_to_install

REAL_CREATE_MODEL = timm.create_model


@pytest.fixture(scope="module")
def authors_tiny(data):
    return ChronoBackbone.from_pretrained(data / "authors_tiny.ckpt", num_heads=4, grid=(8, 8))


@pytest.fixture
def fake_timm_weights(monkeypatch):
    """timm "fetches" weights: drawn from a seed that the name of the model decides."""

    def create(name, pretrained=False, **options):
        vit = REAL_CREATE_MODEL(name, pretrained=False, **options)
        if pretrained:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            with torch.no_grad():
                for parameter in vit.parameters():
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return vit

    monkeypatch.setattr(timm, "create_model", create)


def assert_same(model, other):
    assert model.config == other.config
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]), key


# --- The authors' checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_frames_in_memory": 3}], ids=["whole", "chunks"])
@pytest.mark.parametrize("case", range(3))
@torch.no_grad()
def test_reproduces_the_authors_numbers(authors_tiny, data, case, options):
    with np.load(data / "authors_tiny.npz") as file:
        expected = {
            k.removeprefix(f"case{case}_"): torch.from_numpy(file[k]) for k in file.files if f"case{case}_" in k
        }
    video = expected["video"].permute(0, 1, 4, 2, 3)
    queries = expected["query_points_tyx"][..., [0, 2, 1]]
    features = authors_tiny(video, **options).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(features, expected["features"], rtol=0, atol=1e-5)
    tracks = authors_tiny.track(video, queries, **options)
    torch.testing.assert_close(tracks.xy, expected["tracks_xy"], rtol=0, atol=1e-3)
    torch.testing.assert_close(tracks.logits[..., 0], expected["occlusion_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(tracks.logits[..., 1], expected["expected_dist_logits"], rtol=0, atol=1e-4)
    assert torch.equal(tracks.visible, ~expected["occluded"])


def random_checkpoint(keys_file):
    """A Lightning checkpoint with these keys and shapes, cheap random numbers in it."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(2**20 + 1, generator=generator) - 0.5
    state = {}
    for i, (key, shape) in enumerate(json.loads(keys_file.read_text()).items()):
        size = int(np.prod(shape))
        state[key] = numbers.roll(i).repeat(-(-size // len(numbers)))[:size].reshape(shape)
    return {"state_dict": {**state, "other.weight": torch.zeros(3)}, "epoch": 3, "global_step": 7}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parameters", "width"), [("small", 16_241_280, 384), ("base", 25_986_048, 768)])
def test_published_sizes_load_and_survive_round_trips(data, tmp_path, monkeypatch, size, parameters, width):
    checkpoint = random_checkpoint(data / f"authors_{size}_keys.json")
    torch.save(checkpoint, tmp_path / "model.ckpt")
    table = checkpoint["state_dict"]["model.dino.pos_embed"]
    model = ChronoBackbone.from_pretrained(tmp_path / "model.ckpt")
    assert sum(p.numel() for p in model.adapters.parameters()) == parameters
    config = model.config
    assert (config.grid, config.input_size, config.antialias) == ((64, 64), (256, 256), False)
    assert (config.pos_embed_resize, config.adapter_blocks, model.vit.embed_dim) == ("dinov2", "all", width)
    assert torch.equal(model.vit.pos_embed, table) and table.shape == (1, 1370, width)
    last = checkpoint["state_dict"]["model.adapter.10.conv2.weight"]
    assert torch.equal(model.adapters["10"].conv_out.weight, last)
    del checkpoint

    model.save_pretrained(tmp_path / "saved")
    assert_same(ChronoBackbone.from_pretrained(tmp_path / "saved"), model)
    monkeypatch.setattr(checkpoints, "hf_hub_download", lambda repo, file, **_: os.fspath(tmp_path / "saved" / file))
    assert_same(ChronoBackbone.from_pretrained("someone/chrono"), model)


def test_a_ckpt_path_is_a_name(data, authors_tiny, tmp_path):
    with pytest.raises(ValueError, match=r"num_heads=None.*width 48"):
        ChronoBackbone.from_pretrained(data / "authors_tiny.ckpt")
    with pytest.raises(FileNotFoundError, match=r"nowhere.ckpt"):
        ChronoBackbone.from_pretrained(tmp_path / "nowhere.ckpt")


@pytest.fixture
def checkpoint(data):
    return torch.load(data / "authors_tiny.ckpt", weights_only=True)


def load_changed(checkpoint, folder):
    torch.save(checkpoint, folder / "changed.ckpt")
    return ChronoBackbone.from_pretrained(folder / "changed.ckpt", num_heads=4, grid=(8, 8))


def test_the_rest_of_a_lightning_file_is_ignored(checkpoint, tmp_path, authors_tiny):
    checkpoint["state_dict"]["loss.weight"] = torch.zeros(1)
    checkpoint["optimizer_states"] = [{"lr": 0.1}]
    assert_same(load_changed(checkpoint, tmp_path), authors_tiny)


@pytest.mark.parametrize(
    "key",
    [
        "model.adapter.1.conv1.weight",
        "model.adapter.0.conv_pool.weight",
        "model.dino.blocks.3.ls2.gamma",
        "model.dino.pos_embed",
        "model.occ_linear.bias",
    ],
)
def test_missing_keys_are_named(checkpoint, tmp_path, key):
    del checkpoint["state_dict"][key]
    with pytest.raises(ValueError, match=r"missing keys.*"):
        load_changed(checkpoint, tmp_path)


@pytest.mark.parametrize(
    "key", ["model.dino.blocks.0.extra", "model.adapter.1.conv9.weight", "model.else", "model.dino.head.bias"]
)
def test_unexpected_keys_are_named(checkpoint, tmp_path, key):
    checkpoint["state_dict"][key] = torch.zeros(3)
    with pytest.raises(ValueError, match="1 unexpected keys: .*" + key.split(".")[-1]):
        load_changed(checkpoint, tmp_path)


def test_a_whole_adapter_may_not_be_missing(checkpoint, tmp_path):
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if "model.adapter.1." not in k}
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=r"missing keys: adapters\.1\."):
        ChronoBackbone.from_pretrained(tmp_path / "changed.ckpt", num_heads=4, grid=(8, 8))


@pytest.mark.parametrize("heads", [0, 7, -4])
def test_heads_divide_the_width(data, heads):
    with pytest.raises(ValueError, match=f"num_heads={heads}; expected a divisor of the width 48"):
        ChronoBackbone.from_pretrained(data / "authors_tiny.ckpt", num_heads=heads, grid=(8, 8))


def test_a_ckpt_by_name_takes_heads(data, authors_tiny):
    model = ChronoBackbone.from_pretrained(os.fspath(data / "authors_tiny.ckpt"), num_heads=4, grid=(8, 8))
    assert_same(model, authors_tiny)


def test_a_linked_folder_stays_a_link(small_model, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    small_model().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "model.safetensors").is_file()


def test_misshapen_keys_are_named(checkpoint, tmp_path):
    checkpoint["state_dict"]["model.adapter.2.conv1.bias"] = torch.zeros(15)
    with pytest.raises(ValueError, match=r"1 misshapen keys: adapters.2.conv_in.bias \(15,\) instead of \(16,\)"):
        load_changed(checkpoint, tmp_path)


class Payload:
    """Unpickling this runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["state_dict", "elsewhere"])
def test_a_malicious_pickle_is_refused_and_does_not_run(checkpoint, tmp_path, place):
    ran = tmp_path / "ran"
    (checkpoint["state_dict"] if place == "state_dict" else checkpoint)["model.payload"] = Payload(ran)
    with pytest.raises(ValueError, match=r"changed\.ckpt is no checkpoint, or holds more than tensors"):
        load_changed(checkpoint, tmp_path)
    assert not ran.exists()
    torch.load(tmp_path / "changed.ckpt", weights_only=False)  # the payload is alive: this is what it would have done
    assert ran.exists()


@pytest.mark.parametrize("contents", [b"", b"no checkpoint", None], ids=["empty", "text", "truncated"])
def test_broken_checkpoints(data, tmp_path, contents):
    whole = (data / "authors_tiny.ckpt").read_bytes()
    (tmp_path / "broken.ckpt").write_bytes(whole[: len(whole) // 2] if contents is None else contents)
    with pytest.raises(ValueError, match=r"broken\.ckpt"):
        ChronoBackbone.from_pretrained(tmp_path / "broken.ckpt")


@pytest.mark.parametrize(
    "contents", [torch.zeros(3), {"weights": torch.zeros(3)}, {"state_dict": {"a": torch.zeros(3)}}], ids=str
)
def test_checkpoints_of_something_else(tmp_path, contents):
    torch.save(contents, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"expected a .*checkpoint of the authors' code"):
        ChronoBackbone.from_pretrained(tmp_path / "other.ckpt")


def in_archive(checkpoint, path, change, compression=zipfile.ZIP_STORED):
    """Saves a checkpoint whose pickle was changed."""
    torch.save(checkpoint, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_deep_nesting_does_not_overflow_the_stack(checkpoint, tmp_path):
    """`torch.load` itself crashes on this one."""
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    in_archive(checkpoint, tmp_path / "deep.ckpt", lambda data: deep)
    with pytest.raises(ValueError, match=r"deep\.ckpt .*nested deeper than 100"):
        ChronoBackbone.from_pretrained(tmp_path / "deep.ckpt")


@pytest.mark.parametrize("name", [b"builtins\nbytearray", b"torch.storage\nUntypedStorage", b"torch\nFloatTensor"])
def test_memory_that_the_file_does_not_hold(checkpoint, tmp_path, name):
    """PyTorch allows these: a hundred bytes would take gigabytes, or load what memory happens to hold as weights."""
    made = b"\x80\x02}X\x0a\0\0\0state_dict}X\x07\0\0\0model.xc" + name + b"\nK\x08\x85Rss."
    in_archive(checkpoint, tmp_path / "made.ckpt", lambda data: made)
    assert "model.x" in torch.load(tmp_path / "made.ckpt", weights_only=True)["state_dict"]
    with pytest.raises(ValueError, match=r"made\.ckpt is a truncated or corrupt checkpoint: it wants \w+"):
        ChronoBackbone.from_pretrained(tmp_path / "made.ckpt")


def test_one_text_made_into_bytes_again_and_again(checkpoint, tmp_path):
    """PyTorch allows `_codecs.encode`: a memoised text would be as many copies as the pickle asks for."""
    size, copies = 20_000, 500
    text = b"X" + size.to_bytes(4, "little") + b"a" * size + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01"
    pickled = b"\x80\x02]q\x02(" + encode + text + b"X\x06\0\0\0latin1q\x03\x86R"
    pickled += b"h\x01h\x00h\x03\x86R" * copies + b"e."
    in_archive(checkpoint, tmp_path / "copies.ckpt", lambda data: pickled)
    assert len(torch.load(tmp_path / "copies.ckpt", weights_only=True)) == copies + 1
    with pytest.raises(ValueError, match=r"copies\.ckpt .*passes more text to functions than it holds"):
        ChronoBackbone.from_pretrained(tmp_path / "copies.ckpt")


def test_compressed_checkpoints(checkpoint, tmp_path):
    in_archive(checkpoint, tmp_path / "small.ckpt", lambda data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"small\.ckpt .*compressed"):
        ChronoBackbone.from_pretrained(tmp_path / "small.ckpt")


@pytest.mark.parametrize(
    "value",
    [
        7, "text", None, torch.zeros(3, dtype=torch.int64), torch.zeros(3, device="meta"), torch.zeros(3).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(2)]),
    ],
    ids=["int", "str", "None", "int64", "meta", "sparse", "nested"],
)  # fmt: skip
def test_weights_that_are_none(checkpoint, tmp_path, value):
    checkpoint["state_dict"]["model.dino.pos_embed"] = value
    with pytest.raises(ValueError, match=r"changed\.ckpt.*(model\.dino\.pos_embed|whole|holds more)"):
        load_changed(checkpoint, tmp_path)


def test_weights_that_are_larger_than_their_file(checkpoint, tmp_path):
    checkpoint["state_dict"]["model.dino.blocks.0.mlp.fc1.weight"] = torch.zeros(1, 1).expand(10**6, 48)
    with pytest.raises(ValueError, match=r"changed\.ckpt has \d+ bytes for weights of \d+"):
        load_changed(checkpoint, tmp_path)


def test_keys_that_are_no_text(checkpoint, tmp_path, authors_tiny):
    checkpoint["state_dict"][7] = torch.zeros(1)
    assert_same(load_changed(checkpoint, tmp_path), authors_tiny)


def test_registers_move_the_class_position_into_the_token(checkpoint, tmp_path):
    """With registers, timm keeps no position for the class token."""
    state = checkpoint["state_dict"]
    state["model.dino.register_tokens"] = torch.randn(1, 4, 48)
    model = load_changed(checkpoint, tmp_path)
    expected = state["model.dino.cls_token"] + state["model.dino.pos_embed"][:, :1]
    assert torch.equal(model.vit.cls_token, expected) and model.vit.num_prefix_tokens == 5
    assert torch.equal(model.vit.pos_embed, state["model.dino.pos_embed"][:, 1:])
    assert torch.equal(model.vit.reg_token, state["model.dino.register_tokens"])


# --- Folders and the hub ----------------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"adapter_blocks": (2, 0), "mixer": "conv1d"},
    {"norm": "token", "stem": "conv", "neck": "x2", "freeze_vit": False},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_save_and_load(small_model, tmp_path, variant):
    model = small_model(**variant, input_size=(40, 48), window=(3, 1))
    assert model.save_pretrained(tmp_path / "model") is None
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = ChronoBackbone.from_pretrained(os.fspath(tmp_path / "model"))
    assert_same(loaded, model)
    assert not loaded.training and isinstance(loaded.config.window, tuple)


def test_config_overrides(small_model, tmp_path):
    small_model().save_pretrained(tmp_path)
    model = ChronoBackbone.from_pretrained(tmp_path, grid=(4, 5), radius=2.0)
    assert model.config.grid == (4, 5) and model.config.radius == 2.0
    with pytest.raises(ValueError, match=r"unknown config keys \['gird'\]"):
        ChronoBackbone.from_pretrained(tmp_path, gird=(4, 5))
    with pytest.raises(ValueError, match=r"missing keys: adapters.2"):
        ChronoBackbone.from_pretrained(tmp_path, adapter_blocks=(0, 1, 2))


def test_non_contiguous_and_half_weights(small_model, tmp_path):
    model = small_model().half().to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    saved, loaded = model.state_dict(), ChronoBackbone.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(saved[k].float(), loaded[k]) for k in saved)


def test_saving_twice_keeps_what_the_user_wrote(small_model, tmp_path):
    small_model().save_pretrained(tmp_path / "m")
    for name in ("README.md", "notes.txt"):
        (tmp_path / "m" / name).write_text("mine")
    model = small_model(radius=3.0)
    model.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "README.md").read_text() == (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert_same(ChronoBackbone.from_pretrained(tmp_path / "m"), model)


def test_an_interrupted_save_keeps_the_old_model(small_model, tmp_path, monkeypatch):
    model = small_model()
    model.save_pretrained(tmp_path / "m")

    def fail(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        small_model(radius=9.0).save_pretrained(tmp_path / "m")
    assert_same(ChronoBackbone.from_pretrained(tmp_path / "m"), model)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def damage(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt", "contents": "all"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("adapters.0.pool.bias"), "1 missing keys: adapters.0.pool.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected keys: extra"),
        (
            lambda s: s.update({"vit.norm.bias": torch.zeros(17)}),
            r"1 misshapen keys: vit.norm.bias \(17,\) instead of \(16,\)",
        ),
        (lambda s: [s.pop(k) for k in list(s) if "adapters" in k], "missing keys: adapters.*…"),
    ],
)
def test_folders_that_do_not_fit(small_model, tmp_path, change, message):
    small_model().save_pretrained(tmp_path)
    damage(tmp_path, change)
    with pytest.raises(ValueError, match=f"{tmp_path.name} does not fit the model: .*{message}"):
        ChronoBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_truncated_safetensors(small_model, tmp_path, length):
    small_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is a truncated or corrupt safetensors file"):
        ChronoBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_incomplete_folders(small_model, tmp_path, name):
    small_model().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        ChronoBackbone.from_pretrained(tmp_path)


def test_broken_or_unknown_configuration(small_model, tmp_path):
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(ValueError, match=r"unknown config keys \['colour'\]"):
        ChronoBackbone.from_pretrained(tmp_path)


def test_push_to_hub_uploads_the_saved_folder(small_model, tmp_path, monkeypatch):
    uploads = fake_hub(monkeypatch)
    model = small_model(adapter_blocks=(2, 0))
    assert model.push_to_hub("someone/model", private=True) == "address"
    assert model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="someone/model") == "address"
    for repo_id, files in uploads:
        assert repo_id == "someone/model" and files.keys() == {"README.md", "config.json", "model.safetensors"}
        folder = tmp_path / "downloaded"
        folder.mkdir(exist_ok=True)
        for name, contents in files.items():
            (folder / name).write_bytes(contents)
        assert_same(ChronoBackbone.from_pretrained(folder), model)
    assert len(uploads) == 2


def fake_hub(monkeypatch):
    uploads = []

    def upload(self, *, repo_id, folder_path, **_):
        uploads.append((repo_id, {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}))
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: types.SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return uploads


# --- Adapters only ----------------------------------------------------------------------------------------------------


def stored_keys(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_adapters_only_stores_no_vit_and_loading_supplies_it(small_config, randomise, tmp_path, fake_timm_weights):
    model = ChronoBackbone(small_config(neck="x2"), pretrained_vit=True)
    for module in (model.adapters, model.neck, model.fine, model.visibility_head):
        randomise(module)
    model.save_pretrained(tmp_path, adapters_only=True)
    assert stored_keys(tmp_path) == {k for k in model.state_dict() if not k.startswith("vit.")}
    assert_same(ChronoBackbone.from_pretrained(tmp_path), model)


def test_adapters_only_is_strict(small_config, tmp_path, fake_timm_weights):
    ChronoBackbone(small_config(), pretrained_vit=True).save_pretrained(tmp_path, adapters_only=True)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("adapters.1.norm.bias")
    save_file(state, tmp_path / "model.safetensors", {"contents": "adapters"})
    with pytest.raises(ValueError, match=r"missing keys: adapters.1.norm.bias"):
        ChronoBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize("changes", [{"freeze_vit": False}, {"stem": "conv"}])
def test_adapters_only_needs_a_vit_that_was_not_trained(small_model, tmp_path, changes):
    with pytest.raises(ValueError, match="adapters_only"):
        small_model(**changes).save_pretrained(tmp_path / "m", adapters_only=True)
    assert not (tmp_path / "m").exists()


def test_adapters_only_holds_for_the_upload_too(small_config, tmp_path, fake_timm_weights, monkeypatch):
    uploads = fake_hub(monkeypatch)
    model = ChronoBackbone(small_config(), pretrained_vit=True)
    model.save_pretrained(tmp_path / "m", adapters_only=True, push_to_hub=True, repo_id="someone/model")
    (_, files), expected = uploads[0], (tmp_path / "m" / "model.safetensors").read_bytes()
    assert files["model.safetensors"] == expected


# --- Names ------------------------------------------------------------------------------------------------------------


def test_dinov2_is_the_plain_vit_or_the_start_of_training(fake_timm_weights):
    model = ChronoBackbone.from_pretrained("dinov2-vits14", vit_kwargs={"depth": 2})
    assert model.config.vit == "vit_small_patch14_dinov2.lvd142m"
    assert len(model.adapters) == 0 and model.config.pos_embed_resize == "dinov2"
    start = ChronoBackbone.from_pretrained("dinov2-vits14", vit_kwargs={"depth": 2}, adapter_blocks="all", grid=(8, 8))
    assert list(start.adapters) == ["0"] and start.config.grid == (8, 8)
    assert torch.equal(start.vit.pos_embed, model.vit.pos_embed)
    assert not start.adapters["0"].conv_out.weight.any()


@pytest.mark.parametrize("name", ["chrono-huge", "a/b/c", "./missing", "/missing"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ValueError, match=r"expected one of chrono-tiny, chrono-vits14, .*dinov2-vitb14"):
        ChronoBackbone.from_pretrained(name)


def test_built_in_names_win_over_folders(small_model, tmp_path, monkeypatch, fake_timm_weights):
    monkeypatch.chdir(tmp_path)
    small_model().save_pretrained("dinov2-vits14")
    model = ChronoBackbone.from_pretrained("dinov2-vits14", vit_kwargs={"depth": 1})
    assert model.vit.embed_dim == 384
    assert ChronoBackbone.from_pretrained("./dinov2-vits14").vit.embed_dim == 16


@pytest.fixture
def gdown(monkeypatch, data, tmp_path):
    """A gdown that "downloads" a checkpoint with the authors' keys, and counts."""
    calls = []
    module = types.ModuleType("gdown")

    def download(address, target, **_):
        calls.append(address)
        state = torch.load(data / "authors_tiny.ckpt", weights_only=True)["state_dict"]
        torch.save({"state_dict": state}, target)

    module.download, module.calls = download, calls
    monkeypatch.setitem(sys.modules, "gdown", module)
    monkeypatch.setattr(authors, "read_authors", lambda path: read_authors(path, num_heads=4, grid=(8, 8)))
    return module


def test_the_authors_weights_are_fetched_once_and_converted(gdown, authors_tiny, tmp_path):
    for _ in range(2):
        model = ChronoBackbone.from_pretrained("chrono-vits14", cache_dir=tmp_path)
        assert_same(model, authors_tiny)
    assert gdown.calls == ["https://drive.google.com/uc?id=1Q-rqNl1ZkYhH4UtOjwcMH0oKkcCxMi7K"]
    folder = tmp_path / "chrono-features"
    assert {p.name for p in (folder / "chrono-vits14").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert not [p for p in folder.rglob("*") if p.suffix == ".ckpt"]
    ChronoBackbone.from_pretrained("chrono-vits14", cache_dir=tmp_path, force_download=True)
    assert len(gdown.calls) == 2


def test_what_killed_downloads_left_is_cleared(gdown, authors_tiny, tmp_path):
    cache = tmp_path / "chrono-features"
    (cache / "chrono-vits14.download").mkdir(parents=True)
    (cache / "chrono-vits14.download" / "half").write_bytes(bytes(1000))
    assert_same(ChronoBackbone.from_pretrained("chrono-vits14", cache_dir=tmp_path), authors_tiny)
    assert {p.name for p in cache.iterdir()} <= {"chrono-vits14", "chrono-vits14.lock"}
    (cache / "chrono-vits14" / "config.json").unlink()  # killed between two renames
    assert_same(ChronoBackbone.from_pretrained("chrono-vits14", cache_dir=tmp_path), authors_tiny)
    assert len(gdown.calls) == 2


def check_by_hand(error, *parts):
    for part in parts:
        assert part in str(error.value)


def test_a_failed_download_says_how_to_supply_the_weights(gdown, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("proxy")

    parts = (
        "chrono-vitb14",
        "drive.google.com/uc?id=1XYOr5pVncEAgyWcQZ_TjgvqLTcexdUQr",
        "from_pretrained('",
        "chrono-features convert",
    )
    gdown.download = fail
    with pytest.raises(OSError, match="RuntimeError") as error:
        ChronoBackbone.from_pretrained("chrono-vitb14", cache_dir=tmp_path)
    check_by_hand(error, *parts)
    gdown.download = lambda *args, **kwargs: None  # how gdown used to report a failure
    with pytest.raises(OSError, match="missing") as error:
        ChronoBackbone.from_pretrained("chrono-vitb14", cache_dir=tmp_path)
    check_by_hand(error, *parts)
    with pytest.raises(OSError, match="offline") as error:
        ChronoBackbone.from_pretrained("chrono-vitb14", cache_dir=tmp_path, local_files_only=True)
    check_by_hand(error, *parts)
    assert not list((tmp_path / "chrono-features").glob("chrono-vitb14/*"))


def test_a_missing_gdown_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("weights"))):
        ChronoBackbone.from_pretrained("chrono-vits14", cache_dir=tmp_path)


def test_dinov2_without_a_network(no_network):
    with pytest.raises(OSError, match="could not be fetched") as error:
        ChronoBackbone.from_pretrained("dinov2-vits14", vit_kwargs={"depth": 1})
    check_by_hand(
        error, "model.safetensors", "timm/vit_small_patch14_dinov2.lvd142m", "hf download", "pretrained_cfg_overlay"
    )


def test_the_advice_for_dinov2_works(small_config, tmp_path):
    """Weights named by hand are used, without any network."""
    config = small_config(vit="vit_small_patch14_dinov2.lvd142m")
    vit = REAL_CREATE_MODEL(config.vit, num_classes=0, **config.vit_kwargs)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    kwargs = {**config.vit_kwargs, "pretrained_cfg_overlay": {"file": os.fspath(tmp_path / "vit.safetensors")}}
    model = ChronoBackbone(config.replace(vit_kwargs=kwargs), pretrained_vit=True)
    assert torch.equal(model.vit.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)


def test_a_hub_id_without_a_network(no_network):
    with pytest.raises(OSError, match="someone/model") as error:
        ChronoBackbone.from_pretrained("someone/model")
    check_by_hand(error, "config.json", "model.safetensors", "chrono-tiny", "download the two files")


def test_a_wrong_vit_name_is_not_called_a_missing_download():
    with pytest.raises(ValueError, match="vit_enormous"):
        ChronoBackbone.from_pretrained("dinov2-vits14", vit="vit_enormous")
