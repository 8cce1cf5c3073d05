import pytest
import torch

pytest.importorskip("accelerate")


from chrono_features.training.augment import augment_colour


def test_augmentation_is_the_same_for_all_frames_and_by_seed():
    frame = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    video = frame.expand(4, -1, -1, -1).clone()
    results = [augment_colour(video, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for seed, result in enumerate(results):
        assert result.min() >= 0 and result.max() <= 1
        torch.testing.assert_close(result, result[:1].expand_as(result), rtol=0, atol=1e-5)
        assert torch.equal(result, augment_colour(video, torch.Generator().manual_seed(seed)))
    changed = [not torch.allclose(r, video, atol=1e-5) for r in results]
    grey = [torch.allclose(r[:, 0], r[:, 1], atol=1e-5) for r in results]
    assert sum(changed) >= 10 and 0 < sum(grey) < 12
    assert torch.equal(augment_colour(video, torch.Generator(), jitter=0, grey=0), video)
