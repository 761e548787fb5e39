"""Which views of a photo tell most about its damage? python docs/measure_views.py PHOTOS --exclude LEFT_OUT --out docs/measured/views.jsonl

The tower that ships stays as it is and looks at damaged photos through every view there is. Small heads learn severities from
what it makes of some of the views, and are tested on photos that they did not learn from (the tower did, without knowing these
views). So a view that is new to the tower is rather underrated."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from kept import Kept
from torch import nn

from rr.data import TRAINING, clean_photos, read_exclusions
from rr.degrade import KINDS
from rr.finetune import normalised, streams_of_sizes
from rr.nano import VIEW_NAMES, load_nano_reasoner, nano_views
from rr.severity import Table

CHOICES = (
    ('overview', 'busy', 'quiet'),  # what ships
    ('overview', 'busy'),
    ('overview', 'busy', 'half'),
    ('large-overview', 'busy', 'quiet'),
    ('large-overview', 'busy', 'half'),
    ('large-overview', 'busy', 'quiet', 'half'),
)
RECIPE = replace(TRAINING, counts=(32, 26, 23, 19), tone_share=0.2, stored_share=0.4, weak_share=0.1, clean_share=0.1)
SIZES, MIRRORED = (224, 320, 480), (640,)  # sides of the pairs, pixels
HELD_OUT, EPOCHS, BATCH, RATE = 6, 60, 64, 1e-3  # every sixth photo is held out


@torch.no_grad()
def pooled(tower, photos: list[torch.Tensor]) -> torch.Tensor:
    "Mean, spread and largest of the tokens of each view of each photo: (N, views, 3 D)."
    views = [nano_views(p, VIEW_NAMES) for p in photos]
    each = []
    for column in zip(*views):
        tokens = tower.features(normalised(torch.stack(column)))
        each.append(torch.cat([tokens.mean(1), tokens.std(1), tokens.amax(1)], 1))
    return torch.stack(each, 1)


def seen(tower, photos: list[Path], n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    "What the tower makes of `n` damaged photos, and how severe the damage is, 0 to 1."
    streams = streams_of_sizes(photos, {}, RECIPE, seed, SIZES, MIRRORED)
    features, severities = [], []
    for first in range(0, n, 16):
        pairs = [streams[i % len(streams)][i] for i in range(first, min(first + 16, n))]
        features.append(pooled(tower, [p.degraded for p in pairs]))
        severities += [[p.diagnosis.severity(k) / 100 for k in KINDS] for p in pairs]
        print(f'\r{first + len(pairs)} of {n}', end='', flush=True)
    print()
    return torch.cat(features), torch.tensor(severities)


def errors(learn: tuple, test: tuple, views: list[int], seed: int) -> list[float]:
    "Mean absolute error of a head on the held-out photos, points of severity, kind by kind."
    torch.manual_seed(seed)
    (x, y), (other, truth) = ((f[:, views].flatten(1), s) for f, s in (learn, test))
    mean, scale = x.mean(0), x.std(0) + 1e-4
    x, other = (x - mean) / scale, (other - mean) / scale
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(x.shape[1], 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, y.shape[1]))
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = (head(x[rows]) - y[rows]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    with torch.no_grad():
        return ((head.eval()(other).clamp(0, 1) - truth).abs().mean(0) * 100).tolist()


def report(rows: list[dict]):
    table = []
    for views in dict.fromkeys(tuple(r['views']) for r in rows):
        found = torch.tensor([list(r['error'].values()) for r in rows if tuple(r['views']) == views])
        spread = found.mean(1).std().item() if len(found) > 1 else float('nan')
        table.append(dict(views=', '.join(views)) | dict(zip(KINDS, found.mean(0).tolist()))
                     | {'all kinds': found.mean().item(), 'between seeds': spread})
    print(Table(table, caption='Mean absolute error of the severity, points'))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, help='folder of clean photos')
    p.add_argument('--exclude', type=Path, nargs='+', default=(), help='photos that are not clean, or tables of them')
    p.add_argument('--pairs', type=int, default=2000, help='damaged photos that the heads learn from; a fifth as many for the test')
    p.add_argument('--seeds', type=int, default=4, help='heads for each choice of views')
    p.add_argument('--threads', type=int)
    p.add_argument('--out', type=Path, required=True, help='records, one line each; goes on where it stopped')
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows = Kept(a.out)
    known = {(tuple(r['views']), r['seed']) for r in rows}
    todo = [(v, s) for v in CHOICES for s in range(a.seeds) if (v, s) not in known]
    if todo:
        photos = clean_photos(a.photos, read_exclusions(*a.exclude))
        tower = load_nano_reasoner()[0].model.visual
        held_out = photos[::HELD_OUT]
        learn = seen(tower, [f for f in photos if f not in set(held_out)], a.pairs, 0)
        test = seen(tower, held_out, a.pairs // 5, 1)
        for views, seed in todo:
            error = errors(learn, test, [VIEW_NAMES.index(v) for v in views], seed)
            rows.add(dict(views=views, seed=seed, error={k: round(e, 3) for k, e in zip(KINDS, error)}))
    report(rows)


if __name__ == '__main__':
    main()
