import pytest
import torch
import torch.nn.functional as F

from chrono_features import labels as module
from chrono_features.labels import propagate_labels

FEATURES, LABELS = torch.randn(2, 3, 4, 5, 6), torch.zeros(2, 1, 5, 6)


def dense(features, labels, context, neighbours, radius, temperature):
    """One clip in float64, all cells of all frames compared; the labels already on the features' grid."""
    frames, channels, height, width = features.shape
    cells = features.double().permute(0, 2, 3, 1).reshape(frames, height * width, channels)
    cells = cells / cells.norm(dim=-1, keepdim=True)
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = (place[:, None] - place).abs().amax(-1)
    found = [labels.double().flatten(1).T]
    for t in range(1, frames):
        seen = [0] + [s for s in range(1, t) if t - s <= context]
        affinity = torch.cat([cells[t] @ cells[s].T for s in seen], dim=1).mul(temperature).exp()
        if radius is not None:
            affinity *= (apart <= radius).repeat(1, len(seen))
        least = affinity.sort(dim=1, descending=True).values[:, :neighbours][:, -1:]
        affinity = torch.where(affinity >= least, affinity, 0)
        found.append(affinity / affinity.sum(1, keepdim=True) @ torch.cat([found[s] for s in seen]))
    return torch.stack(found).transpose(1, 2).unflatten(-1, (height, width))


def windows(field, frames, size, step):
    """Windows of a field (B, C, H, W) that move by `step` (rows, columns) a frame: (B, T, C, *size)."""
    starts = [(max(0, -d) * (frames - 1), d) for d in step]
    rows, columns = (range(first, first + d * frames, d) if d else [first] * frames for first, d in starts)
    views = [field[..., y : y + size[0], x : x + size[1]] for y, x in zip(rows, columns, strict=True)]
    return torch.stack(views, dim=1)


@pytest.mark.parametrize("context", [0, 1, 3, 7])
@pytest.mark.parametrize("radius", [None, 0, 2])
@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 10.0), (5, 10.0), (5, 2.0), (1000, 3.0)])
def test_equals_a_dense_twin(context, radius, neighbours, temperature):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 8, 7, 9, generator=generator) * 3
    labels = torch.rand(2, 3, 7, 9, generator=generator)
    options = {"context": context, "neighbours": neighbours, "radius": radius, "temperature": temperature}
    found = propagate_labels(features, labels, **options)
    expected = torch.stack([dense(*clip, **options) for clip in zip(features, labels, strict=True)])
    assert found.shape == (2, 6, 3, 7, 9)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("options", "radius"), [({}, 12), ({"radius": None}, None)])
def test_the_defaults_are_dinos(options, radius):
    """On a grid larger than the radius, and with more frames than the context."""
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(1, 10, 8, 3, 30, generator=generator), torch.rand(1, 2, 3, 30, generator=generator)
    expected = dense(features[0], labels[0], context=7, neighbours=5, radius=radius, temperature=10.0)
    found = propagate_labels(features, labels, **options)[0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("step", [(0, 1), (2, 0), (1, 2), (-1, 1), (-2, -1)])
def test_labels_move_with_the_features(step, context):
    """Exactly, wherever what a cell shows was in the first frame."""
    generator = torch.Generator().manual_seed(2)
    field, truth = torch.randn(2, 32, 20, 24, generator=generator), torch.rand(2, 3, 20, 24, generator=generator)
    features, labels = (windows(values, 4, (12, 14), step) for values in (field, truth))
    found = propagate_labels(features, labels[:, 0], context=context, neighbours=1, radius=6)
    assert torch.equal(found[:, 0], labels[:, 0])
    for t in range(1, 4):
        dy, dx = (d * t for d in step)
        seen = (..., slice(max(0, -dy), 12 - max(0, dy)), slice(max(0, -dx), 14 - max(0, dx)))
        torch.testing.assert_close(found[:, t][seen], labels[:, t][seen], rtol=0, atol=1e-6)


def test_a_still_video_keeps_its_labels():
    features = torch.eye(30).reshape(1, 1, 30, 5, 6).expand(1, 12, -1, -1, -1)
    labels = torch.rand(1, 4, 5, 6)
    found = propagate_labels(features, labels, temperature=200.0)
    torch.testing.assert_close(found, labels[:, None].expand(-1, 12, -1, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("side", [1, -1])
def test_nothing_is_found_beyond_the_radius(dim, side):
    """One cell is like no other, and jumps by 4 cells."""
    cells = torch.randn(1, 1, 8, 11, 11)
    cells[:, :, 0] = 0
    features, labels = cells.repeat(1, 2, 1, 1, 1), torch.zeros(1, 1, 11, 11)
    there = [5, 5]
    there[dim] += 4 * side
    for t, (y, x) in enumerate([(5, 5), there]):
        features[0, t, :, y, x] = F.one_hot(torch.tensor(0), 8)
    labels[0, 0, 5, 5] = 1
    found = [propagate_labels(features, labels, neighbours=1, radius=r)[0, 1, 0][tuple(there)] for r in (3, 4, None)]
    assert found == [0, 1, 1]


def test_the_first_frame_is_never_forgotten():
    """What is hidden for longer than the context comes back with its label."""
    shown, hidden = torch.eye(6)[[0, 1]], torch.eye(6)[[2, 3]]
    features = torch.stack([shown, *[hidden] * 5, shown]).permute(0, 2, 1)[None, ..., None]  # (1, 7, 6, 2, 1)
    labels = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1)
    found = propagate_labels(features, labels, context=2, neighbours=1, temperature=200.0)
    assert found[0, -1].flatten().tolist() == [0, 1]


def test_chunks_do_not_show(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(2, 4, 8, 9, 7, generator=generator), torch.rand(2, 2, 9, 7, generator=generator)
    row = 7 * 9 * 7 * 4  # bytes of one row's similarities with one frame
    found = []
    for budget in (1, 4 * row, 9 * row, 10**9):
        monkeypatch.setattr(module, "default_budget", lambda device, budget=budget: budget)
        found.append(propagate_labels(features, labels, radius=2, context=1))
    for other in found[:-1]:
        torch.testing.assert_close(other, found[-1], rtol=0, atol=1e-6)


def test_clips_do_not_mix():
    features, labels = torch.randn(3, 4, 8, 5, 6), torch.rand(3, 2, 5, 6)
    together = propagate_labels(features, labels)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], propagate_labels(features[b : b + 1], labels[b : b + 1]))


def test_labels_are_averages():
    """They stay in their range, and channels that add up to 1 still do."""
    labels = torch.randn(1, 4, 5, 6).softmax(dim=1)
    found = propagate_labels(torch.randn(1, 6, 8, 5, 6), labels)
    torch.testing.assert_close(found.sum(2), torch.ones(1, 6, 5, 6), rtol=0, atol=1e-5)
    low, high = labels.amin((-2, -1)) - 1e-6, labels.amax((-2, -1)) + 1e-6
    assert (found.amin((1, -2, -1)) >= low).all() and (found.amax((1, -2, -1)) <= high).all()


def test_colours_join_the_similarity():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, 3, 8, 4, 5, generator=generator) * 3
    video = (torch.rand(1, 3, 3, 8, 10, generator=generator) * 255).byte()
    labels = torch.rand(1, 2, 4, 5, generator=generator)
    cells = F.interpolate(video[0].float() / 255, (4, 5), mode="bilinear", antialias=True) * 4 - 2
    colours = F.normalize(torch.cat([cells, torch.ones(3, 1, 4, 5)], dim=1), dim=1)[None]
    joined = torch.cat([F.normalize(features, dim=2) * 0.05**0.5, colours * 0.95**0.5], dim=2)
    found = propagate_labels(features, labels, video=video)
    torch.testing.assert_close(found, propagate_labels(joined, labels), rtol=0, atol=1e-5)
    assert not torch.allclose(found, propagate_labels(features, labels), atol=1e-2)
    alike = torch.ones(1, 3, 8, 4, 5)
    torch.testing.assert_close(
        propagate_labels(alike, labels, video=video),
        propagate_labels(colours, labels, temperature=9.5),
        atol=1e-4,
        rtol=0,
    )
    with pytest.raises(ValueError, match="with the video's B=1, T=2"):
        propagate_labels(features, labels, video=video[:, :2])
    with pytest.raises(ValueError, match="video"):
        propagate_labels(features, labels, video=video[:, :, :2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_colours_are_compared_in_single_precision(dtype):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 4, 16, 8, 8, generator=generator).to(dtype)
    video = (0.4 + 0.02 * torch.rand(1, 4, 3, 8, 8, generator=generator)).clamp(0, 1)
    labels = torch.rand(1, 2, 8, 8, generator=generator)
    found, wide = (propagate_labels(f, labels, video=video) for f in (features, features.float()))
    torch.testing.assert_close(found, wide, rtol=0, atol=1e-4)


def test_only_directions_of_features_matter():
    features, labels = torch.randn(1, 4, 8, 5, 6), torch.rand(1, 2, 5, 6)
    longer = features * (torch.rand(1, 4, 1, 5, 6) * 9 + 0.5)
    torch.testing.assert_close(
        propagate_labels(longer, labels, neighbours=1000), propagate_labels(features, labels, neighbours=1000)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_map_stands_for_one_mask_for_each_label(dtype):
    features, numbers = torch.randn(2, 3, 8, 5, 6), torch.randint(0, 3, (2, 10, 12))
    numbers[0, 0, 0] = 3  # a label of one of the clips
    masks = torch.stack([numbers == k for k in range(4)], dim=1)
    found = propagate_labels(features, numbers.to(dtype))
    assert found.shape == (2, 3, 4, 5, 6)
    assert torch.equal(found, propagate_labels(features, masks))
    assert torch.equal(found, propagate_labels(features, masks.double()))


def test_labels_are_resized_by_area():
    labels = torch.rand(1, 2, 10, 18)
    found = propagate_labels(FEATURES[:1], labels)[:, 0]
    torch.testing.assert_close(found, labels.unflatten(-1, (6, 3)).unflatten(-3, (5, 2)).mean((-3, -1)))
    coarse = propagate_labels(torch.randn(1, 2, 4, 4, 6), torch.tensor([[[[0.0, 1, 2]]]]))[0, 0, 0]
    assert coarse.tolist() == [[0, 0, 1, 1, 2, 2]] * 4


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_are_made_in_single_precision_or_better(dtype, expected):
    features, labels = torch.randn(1, 4, 8, 5, 6).to(dtype), torch.rand(1, 2, 5, 6)
    found = propagate_labels(features, labels, neighbours=1000)
    assert found.dtype == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(propagate_labels(features, labels, neighbours=1000), found)
    torch.testing.assert_close(
        found.double(), dense(features[0], labels[0], 7, 1000, None, 10.0)[None], rtol=0, atol=1e-5
    )


def test_one_frame_is_the_resized_input():
    labels = torch.rand(2, 1, 5, 6)
    assert torch.equal(propagate_labels(FEATURES[:, :1], labels), labels[:, None])


def test_no_gradients_and_no_changes():
    features, labels = torch.randn(1, 3, 4, 5, 6, requires_grad=True), torch.rand(1, 1, 5, 6, requires_grad=True)
    before = features.detach().clone(), labels.detach().clone()
    assert not propagate_labels(features, labels).requires_grad
    assert torch.equal(features, before[0]) and torch.equal(labels, before[1])


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 5, 6), r"\(2, 5, 6\) and type torch.float32"),
        (torch.zeros(2, 5, 6, dtype=torch.bool), "type torch.bool"),
        (torch.zeros(2, 1, 5, 6, dtype=torch.int64), "type torch.int64"),
        (torch.zeros(1, 1, 5, 6), r"\(1, 1, 5, 6\)"),
        (torch.zeros(1, 5, 6, dtype=torch.int64), r"\(1, 5, 6\)"),
        (torch.zeros(2, 0, 5, 6), r"\(2, 0, 5, 6\)"),
        (torch.zeros(2, 1, 5, 6, dtype=torch.complex64), "type torch.complex64"),
        ([[0]], "list"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=rf"labels of .*{message}.*; expected .*\(B, K, H, W\) .* with B=2"):
        propagate_labels(FEATURES, labels)


def test_labels_below_0():
    with pytest.raises(ValueError, match="labels from -1 to .*; expected integers from 0"):
        propagate_labels(FEATURES, torch.full((2, 5, 6), -1))


@pytest.mark.parametrize("features", [torch.zeros(3, 4, 5, 6), torch.zeros(2, 3, 4, 5, 6, dtype=torch.int64)])
def test_bad_features(features):
    with pytest.raises(ValueError, match="features of"):
        propagate_labels(features, LABELS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("context", v) for v in (-1, 1.0, None)],
        *[("neighbours", v) for v in (0, 2.0, None)],
        *[("radius", v) for v in (-1, 2.5, float("inf"))],
        *[("temperature", v) for v in (0, -1.0, float("nan"), float("inf"))],
    ],
)
def test_bad_options(option, value):
    with pytest.raises(ValueError, match=f"{option}=.*; expected a"):
        propagate_labels(FEATURES, LABELS, **{option: value})
