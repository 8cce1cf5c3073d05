import math
import os
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chrono_features import ChronoBackbone, Tracks, grid_queries, soft_argmax_track
from chrono_features.layers import VisibilityHead

FIELDS = ("xy", "similarity", "visible", "logits", "correlation", "confidence")


def is_visible(logits):
    """The rule of the paper: (1 - sigmoid(a)) (1 - sigmoid(b)) of at least one half."""
    a, b = logits.unbind(-1)
    return (1 / (1 + a.exp())) * (1 / (1 + b.exp())) >= 0.5


@pytest.fixture
def tracks():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2,), (), (2,), (), ())
    xy, similarity, logits, correlation, confidence = (torch.randn(2, 5, 4, *n, generator=generator) for n in shapes)
    return Tracks(xy, similarity, is_visible(logits), logits, correlation, confidence)


# --- Tracks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        slice(1),
        (0, 3),
        (slice(None), slice(1, 4)),
        (0, 0, 2),
        (slice(None), [4, 0]),
        (1, slice(None), slice(2, None)),
    ],
    ids=str,
)
def test_indexing_goes_over_all_fields_alike(tracks, index):
    part = tracks[index]
    for name in FIELDS:
        assert torch.equal(getattr(part, name), getattr(tracks, name)[index])


def test_indexing_with_masks(tracks):
    visible = tracks[tracks.visible]
    assert visible.xy.shape == (int(tracks.visible.sum()), 2) and visible.visible.all()
    assert tracks[:, torch.tensor([True, False, False, True, False])].xy.shape == (2, 2, 4, 2)


@pytest.mark.parametrize("index", [(0, 0, 0, 0), ..., (..., 0), None, (0, None), 2, (0, 5)])
def test_indices_that_would_mean_something_else_in_each_field(tracks, index):
    with pytest.raises(IndexError):
        tracks[index]


def test_iterates_over_clips(tracks):
    assert [t.xy.shape for t in tracks] == [(5, 4, 2)] * 2


def test_to_converts_numbers_and_keeps_the_mask(tracks):
    moved = tracks.to("cpu", torch.float64)
    assert {getattr(moved, name).dtype for name in FIELDS if name != "visible"} == {torch.float64}
    assert moved.visible.dtype == torch.bool and torch.equal(moved.visible, tracks.visible)
    assert {getattr(tracks.to("meta"), name).device.type for name in FIELDS} == {"meta"}


def test_without_a_head_there_is_no_visibility(tracks, tmp_path):
    bare = Tracks(tracks.xy, tracks.similarity)
    bare.save(tmp_path / "t.npz")
    for other in (bare, bare[0], bare.to(torch.float64), Tracks.load(tmp_path / "t.npz")):
        assert [name for name in FIELDS if getattr(other, name) is not None] == ["xy", "similarity"]


@pytest.mark.parametrize("grid", [(5, 7), (16, 16)])
def test_positions_stay_within_the_centres_of_the_outer_cells(grid):
    """As the docstring says: a mean of centres goes no further, wherever the point is."""
    torch.manual_seed(0)
    features, (height, width) = torch.randn(2, 3, 8, *grid), (100, 140)
    tracks = soft_argmax_track(features, image_size=(height, width), query_features=3 * torch.randn(2, 200, 8))
    half = torch.tensor([width / grid[1], height / grid[0]]) / 2
    assert (tracks.xy >= half - 1e-4).all() and (tracks.xy <= torch.tensor([width, height]) - half + 1e-4).all()
    assert (tracks.xy - half).amin() < 0.1  # and as far as that it does go


def test_refinement_goes_where_means_of_centres_cannot():
    """A texture moves left until points are 0.1 to 0.4 cells from the border."""
    torch.manual_seed(0)
    model = ChronoBackbone.from_pretrained("chrono-tiny", grid=(16, 16))
    texture = F.interpolate(torch.rand(1, 3, 40, 44), (160, 176), mode="bicubic").clamp(0, 1)
    video = torch.stack([texture[0, :, 16:144, s : s + 128] for s in (0, 8)])[None]
    cell = 128 / 32
    y = torch.linspace(16, 112, 40)
    x = 8 + cell * torch.linspace(0.1, 0.4, 40)
    queries = torch.stack([torch.zeros(40), x, y], dim=-1)[None]
    raw, refined = (model.track(video, queries, refine=how).xy[0, :, 1] for how in (None, "photometric"))
    assert (raw[:, 0] >= cell / 2 - 1e-3).all()
    errors = [(xy - torch.stack([x - 8, y], dim=-1)).norm(dim=-1).median() for xy in (raw, refined)]
    assert errors[1] < 0.75 * errors[0]


def test_save_and_load(tracks, tmp_path):
    path = tmp_path / "tracks.npz"
    replace(tracks, xy=tracks.xy.requires_grad_()).save(path)
    loaded = Tracks.load(str(path))
    for name in FIELDS:
        assert torch.equal(getattr(loaded, name), getattr(tracks, name)), name
    with np.load(path) as arrays:
        assert set(arrays.files) == set(FIELDS) and arrays["visible"].dtype == bool
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.npz"]


def test_files_from_before_there_was_a_confidence(tracks, tmp_path):
    arrays = {name: getattr(tracks, name).numpy() for name in FIELDS[:4]}
    np.savez_compressed(tmp_path / "old.npz", **arrays)
    old = Tracks.load(tmp_path / "old.npz")
    assert all(torch.equal(getattr(old, name), getattr(tracks, name)) for name in FIELDS[:4])
    assert old.correlation is None and old.confidence is None


def test_an_interrupted_save_keeps_the_old_file(tracks, tmp_path, monkeypatch):
    path = tmp_path / "tracks.npz"
    tracks.save(path)

    def fail(file, **arrays):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        tracks[:1].save(path)
    assert Tracks.load(path).xy.shape == tracks.xy.shape
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.npz"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_and_folders_are_no_tracks(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    for path in (tmp_path / "pipe.npz", tmp_path):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is a (pipe|folder); expected what Tracks.save"):
            Tracks.load(path)


def test_other_byte_orders_are_read(tracks, tmp_path):
    tracks.save(tmp_path / "little.npz")
    with np.load(tmp_path / "little.npz") as saved:
        swapped = {name: a.astype(a.dtype.newbyteorder(">")) for name, a in saved.items()}
    np.savez(tmp_path / "big.npz", **swapped)
    little, big = (Tracks.load(tmp_path / f"{name}.npz") for name in ("little", "big"))
    for name in FIELDS:
        value, other = getattr(little, name), getattr(big, name)
        assert value is None or (torch.equal(value, other) and value.dtype == other.dtype)


@pytest.mark.slow
def test_files_that_inflate_beyond_measure(tmp_path):
    """1.2 MB that become 1.2 GB."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("xy", (1, 1, 100_000_000, 2)), ("similarity", (1, 1, 100_000_000))):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(math.prod(shape) * 4 // 8_000_000):
                    file.write(bytes(8_000_000))
    with pytest.raises(
        ValueError, match=r"bomb\.npz is a truncated or corrupt \.npz file: it inflates to 1200000\d+ bytes"
    ):
        Tracks.load(tmp_path / "bomb.npz")


def test_headers_of_more_than_a_file_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive, archive.open("xy.npy", "w") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1, 1, 10**12, 2)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"header\.npz is a truncated or corrupt \.npz file"):
        Tracks.load(tmp_path / "header.npz")


def test_members_that_numpy_does_not_write(tracks, tmp_path):
    tracks.save(tmp_path / "t.npz")
    with (
        zipfile.ZipFile(tmp_path / "t.npz") as whole,
        zipfile.ZipFile(tmp_path / "l.npz", "w", zipfile.ZIP_LZMA) as lzma,
    ):
        for name in whole.namelist():
            lzma.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="it is not compressed as NumPy does"):
        Tracks.load(tmp_path / "l.npz")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("index", "rows"),
    [([0, 1], [0, 1]), ([[0, 1], [1, 0]], [[0, 1], [1, 0]]), ([], []), ([True, False], [0]), (np.array([1]), [1])],
    ids=str,
)
def test_lists_index_as_tensors_do(tracks, index, rows):
    expected = tracks.xy[torch.tensor(rows, dtype=torch.long)]
    assert torch.equal(tracks[index].xy, expected)


def test_files_that_hold_no_tracks(tracks, tmp_path):
    with pytest.raises(FileNotFoundError):
        Tracks.load(tmp_path / "missing.npz")
    path = tmp_path / "t.npz"
    np.savez(path, xy=np.zeros(3))
    with pytest.raises(ValueError, match=r"t\.npz holds \['xy'\]; expected"):
        Tracks.load(path)
    np.savez(path, xy=np.zeros(3), similarity=np.zeros(3), extra=np.zeros(3))
    with pytest.raises(ValueError, match="extra"):
        Tracks.load(path)


@pytest.mark.parametrize("contents", [b"no archive", b"", None], ids=["text", "empty", "truncated"])
def test_broken_files_are_named(tracks, tmp_path, contents):
    path = tmp_path / "t.npz"
    tracks.save(path)
    path.write_bytes(path.read_bytes()[:-200] if contents is None else contents)
    with pytest.raises(ValueError, match=r"t\.npz"):
        Tracks.load(path)


def test_a_single_array_is_not_tracks(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"t\.npy"):
        Tracks.load(tmp_path / "t.npy")


# --- VisibilityHead, grid_queries -------------------------------------------------------------------------------------


class Constant(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, statistics):
        return self.logits.expand(*statistics.shape[:-1], 2)


@pytest.mark.parametrize(
    ("logits", "visible"),
    [((-9.0, -9.0), True), ((9.0, -9.0), False), ((-9.0, 9.0), False), ((-0.87, -0.87), False), ((-0.89, -0.89), True)],
)
def test_visibility_is_the_joint_probability(logits, visible):
    tracks = soft_argmax_track(FEATURES, QUERIES, SIZE, visibility_head=Constant(logits))
    assert tracks.visible.dtype == torch.bool and (tracks.visible == visible).all()


def test_a_new_head_calls_everything_visible():
    assert is_visible(VisibilityHead()(torch.rand(50, 3) * 2 - 1)).all()


def test_the_head_sees_mean_maximum_and_minimum_and_does_not_train_features():
    features = torch.nn.functional.normalize(torch.randn(1, 3, 4, 5, 6), dim=2).requires_grad_()
    head = VisibilityHead()
    torch.nn.init.normal_(head.linear.weight)
    wanted = torch.randn(1, 2, 4)
    tracks = soft_argmax_track(features, None, (5, 6), query_features=wanted, visibility_head=head)
    maps = torch.einsum("bnc,btchw->bnthw", wanted, features).flatten(3)
    statistics = torch.stack([maps.mean(-1), maps.amax(-1), maps.amin(-1)], dim=-1)
    torch.testing.assert_close(tracks.logits, head(statistics), rtol=0, atol=1e-5)
    assert torch.equal(tracks.visible, is_visible(tracks.logits))
    torch.testing.assert_close(tracks.similarity, statistics[..., 1], rtol=0, atol=1e-5)
    assert tracks.logits.requires_grad
    assert torch.autograd.grad(tracks.logits.sum(), features, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(tracks.logits.sum(), head.linear.weight)[0].abs().max() > 0


def test_grid_queries_are_the_centres_of_tiles():
    queries = grid_queries((2, 3), (20, 60), t=4)
    assert queries.shape == (1, 6, 3) and queries.dtype == torch.float32
    assert queries[0].tolist() == [[4, x, y] for y in (5, 15) for x in (10, 30, 50)]
    assert torch.equal(grid_queries(3, (9, 9)), grid_queries((3, 3), (9, 9), t=0))


@pytest.mark.parametrize(
    ("size", "image_size", "t"), [(0, (9, 9), 0), ((2, 0), (9, 9), 0), (2, (0, 9), 0), (2, (9, 9), -1)]
)
def test_bad_grids(size, image_size, t):
    with pytest.raises(ValueError, match="expected"):
        grid_queries(size, image_size, t)


# --- Bad input of soft_argmax_track -----------------------------------------------------------------------------------

FEATURES, QUERIES, SIZE = torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 1, 3), (10, 12)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3, 4, 5, 6), r"\(3, 4, 5, 6\); expected \(B, T, C, h, w\)"),
        (torch.zeros(2, 0, 4, 5, 6), "none of them 0"),
        (torch.zeros(0, 3, 4, 5, 6), "none of them 0"),
        (torch.zeros(2, 3, 4, 5, 6, dtype=torch.int32), "int32; expected a floating type"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(ValueError, match=f"features of.*{message}"):
        soft_argmax_track(features, QUERIES[: len(features)], SIZE)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((3, 1, 1), "t from 0 to 2"),
        ((-1, 1, 1), "t from 0 to 2"),
        ((1.5, 1, 1), "an integer frame index"),
        ((0, 12.01, 1), "x from 0 to 12 and y from 0 to 10"),
        ((0, -0.01, 1), "x from 0"),
        ((0, 1, 10.01), "y from 0 to 10"),
        ((0, 1, -0.01), "y from 0"),
        ((0, float("nan"), 1), "finite"),
        ((float("inf"), 1, 1), "finite"),
    ],
)
def test_bad_queries_are_named(query, message):
    queries = torch.zeros(2, 4, 3)
    queries[1, 2] = torch.tensor(query)
    with pytest.raises(ValueError, match=rf"queries\[1, 2\] = .*{message}"):
        soft_argmax_track(FEATURES, queries, SIZE)


@pytest.mark.parametrize(
    "queries", [torch.zeros(3), torch.zeros(2, 1, 2), torch.zeros(3, 1, 3), torch.zeros(2, 1, 3, dtype=torch.bool)]
)
def test_misshapen_queries(queries):
    with pytest.raises(ValueError, match="queries of"):
        soft_argmax_track(FEATURES, queries, SIZE)


@pytest.mark.parametrize("corner", [(0, 0), (12, 0), (0, 10), (12, 10)])
def test_the_edges_of_the_frame_are_inside(corner):
    queries = torch.tensor([[[2, *corner]]] * 2, dtype=torch.float32)
    assert soft_argmax_track(FEATURES, queries, SIZE).xy[0, 0, 2].tolist() == list(corner)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_queries_of_any_number_type(dtype):
    xy = soft_argmax_track(FEATURES, torch.tensor([[[2, 3, 4]]] * 2, dtype=dtype), SIZE).xy
    assert xy.dtype == torch.float32 and xy[0, 0, 2].tolist() == [3, 4]


@pytest.mark.parametrize("size", [None, 10, (10,), (10, 12, 3), (0, 12), (10, -1), (10, float("nan")), ("a", "b")])
def test_bad_image_sizes(size):
    with pytest.raises(ValueError, match=r"image_size=.*expected two positive numbers"):
        soft_argmax_track(FEATURES, QUERIES, size)


@pytest.mark.parametrize("option", ["temperature", "radius", "memory_budget"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"{option}="):
        soft_argmax_track(FEATURES, QUERIES, SIZE, **{option: value})


def test_exactly_one_kind_of_query():
    with pytest.raises(ValueError, match="neither given"):
        soft_argmax_track(FEATURES, None, SIZE)
    with pytest.raises(ValueError, match="both given"):
        soft_argmax_track(FEATURES, QUERIES, SIZE, query_features=torch.zeros(2, 1, 4))
    for shape in ((2, 4), (2, 1, 5), (1, 1, 4)):
        with pytest.raises(ValueError, match=r"query_features of shape.*C=4"):
            soft_argmax_track(FEATURES, None, SIZE, query_features=torch.zeros(shape))


@pytest.mark.parametrize("query_features", [None, torch.zeros(2, 0, 4)])
def test_no_queries_give_an_empty_result(query_features):
    queries = torch.zeros(2, 0, 3) if query_features is None else None
    features = FEATURES.clone().requires_grad_()
    tracks = soft_argmax_track(features, queries, SIZE, query_features=query_features, visibility_head=VisibilityHead())
    assert [getattr(tracks, f).shape for f in FIELDS[:4]] == [(2, 0, 3, 2), (2, 0, 3), (2, 0, 3), (2, 0, 3, 2)]
    tracks.xy.sum().backward()
    assert not features.grad.any()


def test_inputs_are_not_changed():
    features, queries = torch.randn(1, 3, 4, 5, 6), torch.tensor([[[1.0, 2.0, 3.0]]])
    before = features.clone(), queries.clone()
    soft_argmax_track(features, queries, SIZE)
    assert torch.equal(features, before[0]) and torch.equal(queries, before[1])


def test_one_set_of_queries_serves_all_videos():
    features = torch.nn.functional.normalize(torch.randn(3, 2, 4, 5, 5), dim=2)
    queries = grid_queries(2, (10, 10))
    together = soft_argmax_track(features, queries, (10, 10))
    repeated = soft_argmax_track(features, queries.repeat(3, 1, 1), (10, 10))
    assert torch.equal(together.xy, repeated.xy) and together.xy.shape == (3, 4, 2, 2)
