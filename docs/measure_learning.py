"""What would more photos, more parameters or more updates bring the eyes of the nano reasoner? python docs/measure_learning.py PHOTOS Kodak24 McMaster --work FOLDER --out docs/measured/learning.jsonl

Towers learn from nothing, all for the same number of updates with the same schedule: of the size that ships, on 16 photos, 64, 256 and all; and on all photos, narrower and wider.
Every so often each says how severe the damage of the same held-out crops is. Kinds, severities and crops are drawn anew for every pair, so few photos still give many pairs. A
command that was stopped goes on from the states in FOLDER."""

import argparse
from pathlib import Path

import numpy as np
import torch
from kept import Kept

from rr.data import TRAINING, PairStream, clean_photos, read_exclusions
from rr.degrade import KINDS
from rr.finetune import TowerBatches, TowerTrainer, TowerTraining, streams_of_sizes
from rr.nano import TOWER_WIDTHS, NanoTower
from rr.severity import Table

PHOTOS = (16, 64, 256, None)  # None: all
SCALES = (0.25, 0.5, 2.0)  # of the channels that ship, which the arms of `PHOTOS` have
EVERY = 50  # updates between two records
BATCH, PAIRS, SIZES = 16, 128, (224, 320)  # pairs of an update, held-out pairs, sides of the crops, pixels


class Shared:
    "Batches that all trainers with the same photos learn from; each is made once."

    def __init__(self, streams: list):
        self.source, self.step, self.batch = TowerBatches(streams, BATCH), None, None

    def draw(self, n: int, generator):
        return self.batch

    def go_to(self, step: int):
        "Make the batch of this step, unless it is there."
        if step != self.step:
            self.step, self.batch = step, self.source(step)


def arms(photos: list[Path], seed: int) -> dict[str, tuple[list[Path], float]]:
    "What is compared: name of the arm -> photos, scale of the channels."
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed)).tolist()
    some = {n or len(photos): [photos[i] for i in sorted(order[:n])] for n in PHOTOS}
    return {f'{n} photos': (chosen, 1.0) for n, chosen in some.items()} | {f'{s:g} x channels': (photos, s) for s in SCALES}


def trainers_of(photos: list[Path], seed: int, work: Path) -> dict[str, tuple[TowerTrainer, int]]:
    "For each arm a trainer, as far as it got, and the number of its photos."
    made, shared = {}, {}
    for name, (some, scale) in arms(photos, seed).items():
        torch.manual_seed(seed)
        tower = NanoTower(256, tuple(int(w * scale) for w in TOWER_WIDTHS))
        streams = streams_of_sizes(some, {}, TRAINING, seed, SIZES, ())
        trainer = TowerTrainer(tower, streams, work / f'{seed} {name}', TowerTraining(minutes=1))
        if not trainer.step:
            trainer.standardise()
        tower.train().to(memory_format=torch.channels_last)
        trainer.batches = shared.setdefault(len(some), Shared(streams))
        made[name] = trainer, len(some)
    return made


def always_the_mean(pairs: list) -> dict[str, float]:
    "What saying the mean severity of every kind errs by, as `TowerTrainer.errors` gives it."
    true = np.array([[p.diagnosis.severity(k) for k in KINDS] for p in pairs])
    return dict(zip(KINDS, np.abs(true - true.mean(0)).mean(0).round(2).tolist()))


def learn(trainers: dict[str, tuple[TowerTrainer, int]], seed: int, updates: int, pairs: list, rows: Kept):
    "Every trainer up to that many updates; what it errs by goes to `rows`."
    known = {(r['arm'], r['seed'], r['step']) for r in rows}
    for step in range(min(t.step for t, _ in trainers.values()), updates):
        for name, (trainer, photos) in trainers.items():
            if trainer.step > step:  # it was saved later than the others
                continue
            trainer.batches.go_to(step)
            trainer.elapsed = step / updates  # of a minute: the schedule goes by updates
            trainer.losses.append(trainer.train_step())
            if trainer.step % EVERY:
                continue
            if (name, seed, trainer.step) not in known:
                loss, size = float(np.mean(trainer.losses)), sum(w.numel() for w in trainer.tower.parameters())
                row = dict(arm=name, seed=seed, step=trainer.step, photos=photos, parameters=size, loss=round(loss, 5))
                trainer.tower.eval()
                rows.add(row | dict(error=trainer.errors(pairs)))
                trainer.tower.train()
            trainer.losses = []
            trainer.save()


def means(rows: list[dict]) -> list[dict]:
    "Error of every arm at every step: mean and range over the seeds, mean of each kind."
    made = []
    for arm, step in dict.fromkeys((r['arm'], r['step']) for r in rows):
        found = [r for r in rows if (r['arm'], r['step']) == (arm, step)]
        each = [float(np.mean([r['error'][k] for k in KINDS])) for r in found]
        made.append(
            {k: found[0][k] for k in ('arm', 'photos', 'parameters', 'step')}
            | {k: round(float(np.mean([r['error'][k] for r in found])), 1) for k in KINDS}
            | dict(together=round(float(np.mean(each)), 2), lowest=round(min(each), 2), highest=round(max(each), 2))
        )
    return made


def main(args: list[str] | None = None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, help='folder of clean photos to learn from')
    p.add_argument('held_out', type=Path, nargs='+', help='folders of clean photos to report errors on')
    p.add_argument('--exclude', type=Path, nargs='+', default=(), help='photos, or tables of photos, to leave out')
    p.add_argument('--updates', type=int, default=300)
    p.add_argument('--seeds', type=int, nargs='+', default=(0, 1))
    p.add_argument('--work', type=Path, required=True, help='folder for the states of the towers')
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--threads', type=int)
    a = p.parse_args(args)
    if a.threads:
        torch.set_num_threads(a.threads)
    rows, photos = Kept(a.out), clean_photos(a.photos, read_exclusions(*a.exclude))
    held_out = [path for folder in a.held_out for path in clean_photos(folder)]
    pairs = [PairStream(held_out, max(SIZES), TRAINING, seed=1)[i] for i in range(PAIRS)]
    if not any(r['arm'] == 'always the mean' for r in rows):
        about = dict(arm='always the mean', seed=0, step=a.updates, photos=0, parameters=0)
        rows.add(about | dict(error=always_the_mean(pairs)))
    for seed in a.seeds:
        learn(trainers_of(photos, seed, a.work), seed, a.updates, pairs, rows)
    last = max(r['step'] for r in rows)
    print(Table([r for r in means(rows) if r['step'] == last], caption='error of the severity, points'))


if __name__ == '__main__':
    main()
