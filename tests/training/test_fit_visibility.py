import pytest
import torch

pytest.importorskip("accelerate")

from tiny_training import CONFIG

from chrono_features import ChronoBackbone
from chrono_features.training import Stage
from chrono_features.training.batches import SyntheticBatches
from chrono_features.training.fit_visibility import fit_visibility
from chrono_features.training.losses import visibility_loss

FITTED = Stage("visibility", 3, (3, 5), (1, 6), (32, 32), (8, 8), 1, 48, 0.0)


@pytest.mark.slow
@torch.no_grad()
def test_the_visibility_head_is_fitted_to_the_lowest_loss():
    torch.manual_seed(0)
    model = ChronoBackbone(CONFIG)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [SyntheticBatches(FITTED, None)[i] for i in range(3)]
    fit_visibility(model, batches, FITTED)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"visibility_head.linear.weight", "visibility_head.linear.bias"}
    assert not model.visibility_head._forward_pre_hooks

    def loss():
        """Over all frames but the queries' own, at 256 x 256."""
        logits, xy, target, visible = [], [], [], []
        for batch in batches:
            tracks = model.track(batch.video, batch.queries)
            scored = torch.arange(batch.video.shape[1]) != batch.queries[..., :1]
            logits.append(tracks.logits[scored])
            xy.append(tracks.xy[scored] * 8)
            target.append(batch.tracks[scored] * 8)
            visible.append(batch.visible[scored])
        return float(visibility_loss(*map(torch.cat, (logits, xy, target, visible))))

    lowest = loss()
    for parameter in model.visibility_head.parameters():
        for index in range(parameter.numel()):
            for change in (-0.03, 0.03):
                parameter.view(-1)[index] += change
                assert loss() > lowest
                parameter.view(-1)[index] -= change
