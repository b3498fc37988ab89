"""A relation network (Sung et al. 2018, 1711.06025) in a few lines, from public names alone."""

import torch
import torch.nn.functional as F
from torch import nn

from metatransfer import Conv4, Episode, EpisodicModule


class RelationLike(EpisodicModule):
    """Learns to score how well two stacks of feature maps fit together, by squared error towards 1 or 0."""

    def __init__(self, backbone, hidden=8, optimizer=torch.optim.Adam, lr_scheduler=None):
        super().__init__(optimizer, lr_scheduler)
        self.backbone = backbone
        with torch.no_grad():
            channels = backbone.eval().feature_maps(torch.zeros(1, *backbone.in_shape)).shape[1]
        self.relation = nn.Sequential(
            nn.Conv2d(2 * channels, hidden, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(hidden, 1),
        )  # fmt: skip

    def maps(self, x):
        return self.backbone.feature_maps(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def fit_tasks(self, support_x, support_y):
        members = F.one_hot(support_y).to(support_x.dtype)  # (T, S, W)
        sums = torch.einsum("tsw,tschk->twchk", members, self.maps(support_x))
        return sums / members.sum(1)[..., None, None, None]

    def predict_tasks(self, state, query_x):
        queries = self.maps(query_x)
        tasks, asked, ways = *queries.shape[:2], state.shape[1]
        pairs = torch.cat(
            [
                state.unsqueeze(1).expand(-1, asked, -1, -1, -1, -1),
                queries.unsqueeze(2).expand(-1, -1, ways, -1, -1, -1),
            ],
            dim=3,
        )
        return self.relation(pairs.flatten(0, 2)).view(tasks, asked, ways)

    def training_loss(self, episode):
        scores = self(episode)
        return F.mse_loss(scores.sigmoid(), F.one_hot(episode.query_y, scores.shape[-1]).to(scores.dtype)), scores


def episode(seed, tasks=4, ways=3, queries=4):
    """Which corner of the image is bright, in drawn order; noise everywhere."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(tasks, 4, generator=draw).argsort(-1)[:, :ways]

    def images(labels):
        x = 0.3 * torch.rand(tasks, labels.shape[1], 1, 32, 32, generator=draw)
        chosen = corners.gather(1, labels)
        for task in range(tasks):
            for place, corner in enumerate(chosen[task].tolist()):
                row, column = divmod(corner, 2)
                x[task, place, 0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 0.7
        return x

    support, query = (torch.arange(ways).repeat(times).expand(tasks, -1) for times in (1, queries))
    return Episode(images(support), support, images(query), query)


def accuracy(module):
    module.eval()
    with torch.no_grad():
        found = [(module(one).argmax(-1) == one.query_y).float().mean() for one in map(episode, range(900, 905))]
    return torch.stack(found).mean().item()


def test_it_learns_relations_of_feature_maps():
    torch.manual_seed(0)
    module = RelationLike(Conv4(1, 32, hidden_channels=8))
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    before = accuracy(module)
    module.train()
    for seed in range(60):
        optimizer.zero_grad()
        module.training_loss(episode(seed))[0].backward()
        optimizer.step()
    after = accuracy(module)
    assert after > max(before, 1 / 3) + 0.3
    predictor = module.adapt(*(part[0] for part in episode(1)[:2]))
    assert predictor.predict_proba(episode(1).query_x[0]).shape == (12, 3)
