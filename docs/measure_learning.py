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


class Given:
    "A batch that several trainers learn from."

    batch = None

    def draw(self, n, generator):
        return self.batch


def arms(photos: list[Path], seed: int):  # name -> photos, scale of the channels
    "What is compared."
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(seed)).tolist()
    some = {n or len(photos): [photos[i] for i in sorted(order[:n])] for n in PHOTOS}
    return {f'{n} photos': (chosen, 1.0) for n, chosen in some.items()} | {f'{s:g} x channels': (photos, s) for s in SCALES}


def report(rows: list[dict]) -> Table:
    "The last errors of every arm, mean and range over the seeds."
    made, last = [], max(r['step'] for r in rows)
    for name in dict.fromkeys(r['arm'] for r in rows):
        found = [r for r in rows if r['arm'] == name and r['step'] == last]
        means = [np.mean([r['error'][k] for k in KINDS]) for r in found]
        made.append(
            dict(arm=name, photos=found[0]['photos'], parameters=found[0]['parameters'])
            | {k: round(float(np.mean([r['error'][k] for r in found])), 1) for k in KINDS}
            | dict(together=round(float(np.mean(means)), 2), seeds=', '.join(f'{m:.2f}' for m in means))
        )
    return Table(made, caption=f'error of the severity after {last} updates of 16 photos, points')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, help='folder of clean photos to learn from')
    p.add_argument('held_out', type=Path, nargs='+', help='folders of clean photos to report errors on')
    p.add_argument('--exclude', type=Path, nargs='+', default=(), help='photos, or tables of photos, to leave out')
    p.add_argument('--updates', type=int, default=300)
    p.add_argument('--seeds', type=int, nargs='+', default=(0, 1))
    p.add_argument('--work', type=Path, required=True, help='folder for the states of the towers')
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--threads', type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows, everything = Kept(a.out), clean_photos(a.photos, read_exclusions(*a.exclude))
    known = {(r['arm'], r['seed'], r['step']) for r in rows}
    tests = [path for folder in a.held_out for path in clean_photos(folder)]
    pairs = [PairStream(tests, 320, TRAINING, seed=1)[i] for i in range(128)]
    for seed in a.seeds:
        trainers, sources, given = {}, {}, {}
        for name, (photos, scale) in arms(everything, seed).items():
            torch.manual_seed(seed)
            tower = NanoTower(256, tuple(int(w * scale) for w in TOWER_WIDTHS))
            streams = streams_of_sizes(photos, {}, TRAINING, seed, (224, 320), ())
            trainers[name] = TowerTrainer(tower, streams, a.work / f'{seed} {name}', TowerTraining(minutes=1))
            if not trainers[name].step:
                trainers[name].standardise()
            tower.train().to(memory_format=torch.channels_last)
            key = len(photos)
            sources.setdefault(key, TowerBatches(streams, 16))
            trainers[name].batches = given.setdefault(key, Given())
        for step in range(min(t.step for t in trainers.values()), a.updates):
            for source in given.values():
                source.batch = None
            for (name, (photos, _)), trainer in zip(arms(everything, seed).items(), trainers.values()):
                if trainer.step > step:  # it was saved later than the others
                    continue
                source = given[len(photos)]
                if source.batch is None:
                    source.batch = sources[len(photos)](step)
                trainer.elapsed = step / a.updates  # of a minute: the schedule goes by updates
                trainer.losses.append(trainer.train_step())
                if trainer.step % EVERY == 0:
                    tower = trainer.tower.eval()
                    if (name, seed, trainer.step) not in known:
                        size = sum(w.numel() for w in tower.parameters())
                        shares = dict(photos=len(photos), parameters=size, loss=round(float(np.mean(trainer.losses)), 5))
                        rows.add(dict(arm=name, seed=seed, step=trainer.step) | shares | dict(error=trainer.errors(pairs)))
                    trainer.losses = []
                    tower.train()
                    trainer.save()
    print(report(rows))


if __name__ == '__main__':
    main()
