import math

import pytest
import torch

pytest.importorskip("accelerate")


from chrono_features.training.losses import grid_cross_entropy, huber_loss, visibility_loss


def test_huber_loss_by_hand():
    target = torch.zeros(4, 2)
    xy = torch.tensor([[0.0, 0.0], [3.0, 0.0], [6.0, 8.0], [100.0, 0.0]])  # 0, 3, 10 and 100 pixels away
    visible = torch.tensor([True, True, True, False])
    expected = (0 + 3**2 / 2 + 4 * (10 - 2) + 0) / 4
    assert huber_loss(xy, target, visible).item() == pytest.approx(expected, rel=1e-5)


def test_huber_loss_has_a_slope_everywhere():
    xy = torch.tensor([[0.0, 0.0], [4.0, 0.0], [30.0, 40.0]], requires_grad=True)
    huber_loss(xy, torch.zeros(3, 2), torch.ones(3, dtype=torch.bool)).backward()
    torch.testing.assert_close(xy.grad * 3, torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.4, 3.2]]), rtol=1e-4, atol=1e-5)


def test_visibility_loss_by_hand():
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.0]], requires_grad=True)
    xy = torch.tensor([[7.0, 0.0], [5.0, 0.0], [90.0, 0.0]], requires_grad=True)  # far, near, far
    visible = torch.tensor([True, True, False])

    def entropy(logit, truth):
        return -math.log(1 / (1 + math.exp(-logit if truth else logit)))

    occluded = (entropy(1.0, False) + entropy(0.5, False) + entropy(-1.0, True)) / 3
    far = (entropy(-2.0, True) + entropy(3.0, False)) / 3  # the hidden point's distance does not count
    loss = visibility_loss(logits, xy, torch.zeros(3, 2), visible)
    assert loss.item() == pytest.approx(occluded + far, rel=1e-6)
    assert torch.autograd.grad(loss, xy, allow_unused=True) == (None,)


def test_balanced_visibility_loss_by_hand():
    """However many points of a kind there are, the kind weighs one half."""
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.2, 1.0], [-1.0, 0.0]], requires_grad=True)
    xy = torch.tensor([[7.0, 0.0], [5.0, 0.0], [0.0, 0.0], [90.0, 0.0]])  # far, near, near, far but hidden
    visible = torch.tensor([True, True, True, False])

    def entropy(logit, truth):
        return -math.log(1 / (1 + math.exp(-logit if truth else logit)))

    hidden, seen = entropy(-1.0, True), sum(entropy(x, False) for x in (1.0, 0.5, 0.2)) / 3
    far, near = entropy(-2.0, True), (entropy(3.0, False) + entropy(1.0, False)) / 2
    loss = visibility_loss(logits, xy, torch.zeros(4, 2), visible, balanced=True)
    assert loss.item() == pytest.approx((hidden + seen) / 2 + (far + near) / 2, rel=1e-6)
    none_hidden = visibility_loss(logits[:3], xy[:3], torch.zeros(3, 2), visible[:3], balanced=True)
    assert none_hidden.item() == pytest.approx(seen + (far + near) / 2, rel=1e-6)


def test_grid_cross_entropy_by_hand():
    similarity = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    cells = torch.tensor([[2.25, 1.5], [0.0, 3.7], [4.0, 4.0]])  # between two cells; beyond the outer centres; unscored
    scored = torch.tensor([True, True, False])
    log_p = [(7.0 * s).flatten().log_softmax(0).view(4, 5) for s in similarity]
    first = -(0.25 * log_p[0][1, 1] + 0.75 * log_p[0][1, 2])
    second = -log_p[1][3, 0]
    loss = grid_cross_entropy(similarity, cells, scored, torch.tensor(7.0))
    assert loss.item() == pytest.approx(((first + second) / 2).item(), rel=1e-5)


def test_grid_cross_entropy_of_nothing_is_zero_and_trains_the_temperature():
    similarity, cells = torch.randn(2, 3, 3, requires_grad=True), torch.ones(2, 2)
    temperature = torch.tensor(5.0, requires_grad=True)
    empty = grid_cross_entropy(similarity, cells, torch.zeros(2, dtype=torch.bool), temperature)
    assert empty.item() == 0
    grid_cross_entropy(similarity, cells, torch.ones(2, dtype=torch.bool), temperature).backward()
    assert temperature.grad != 0 and similarity.grad.abs().max() > 0
