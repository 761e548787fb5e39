"""Does the diagnosis pay? Small restorers that learn without it, with the true one, with the predicted one and with
parts of it.

    python docs/measure_grid.py PHOTOS Kodak24 McMaster --exclude LEFT_OUT --captions captions.jsonl --work FOLDER \\
        --updates 600 --seeds 0 1 2 --threads 1 --out docs/measured/grid.jsonl

PHOTOS is a folder of clean photos to learn from, the folders after it are tested on. All networks of a seed start from
the same weights and see the same patches in the same order, equally often; they differ in what they are told. The
reasoner is asked once about each pair. Two processes can share the work: give each other seeds and another --out. A
file that is there is continued; without --work, its table is printed."""

import argparse, time
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from kept import Kept

from rr.core import atomic_path, psnr, seeded
from rr.data import EVALUATION, PairStream, Recipe, clean_photos, load_captions, read_exclusions
from rr.degrade import PAPER_KINDS
from rr.diagnosis import Diagnosis, diagnosis_vectors
from rr.evaluate import bootstrap
from rr.finetune import schedule, short_side
from rr.flow import Batch, Predictions, WeightAverage, flow_loss, shake_numbers
from rr.nano import NanoRestorerNet, Survey, first_guesses, glance_at, row_median
from rr.reasoner import Reasoner
from rr.restorer import CotReader, measured_diagnoses
from rr.severity import Table

SIZE, PATCH, PAIRS = 256, 96, 16  # side of the photos, side of the patches, patches in an update
SHAPE, SURVEY = (
    dict(widths=(24, 48, 96), depths=(1, 2, 3), cond_size=128),
    (12, 24, 48),
)  # a fifth of the network that ships
LEARN = Recipe(PAPER_KINDS, max_kinds=3, clean_share=0.08, weights=(1.2, 0.9, 1.4, 0.9))
CONDITIONS = {'mixed': (EVALUATION, 2)} | {
    kind: (Recipe((kind,), 1, 1), 1) for kind in PAPER_KINDS
}  # recipe, damages of each photo


@dataclass(frozen=True)
class Arm:
    "What a network is told while it learns."

    source: str | None = None  # 'true' or 'predicted'
    numbers: bool = False  # severities and parameters; they open the head of each kind and give the kernel of the first guesses
    text: str | None = (
        None  # 'cot', the whole chain of thought; 'scene', what it says of the scene and its objects alone
    )


ARMS = {
    'none': Arm(),
    'true': Arm('true', True, 'cot'),
    'predicted': Arm('predicted', True, 'cot'),
    'numbers': Arm('predicted', True),
    'text': Arm('predicted', text='cot'),
    'scene': Arm('predicted', text='scene'),
}


class OpenNet(NanoRestorerNet):
    "The same network without numbers: all heads are open, for nobody says which are needed."

    def mix(self, x, folded, cond, numbers):
        return super().mix(x, folded, cond, torch.ones_like(numbers))


def new_net(arm: Arm) -> NanoRestorerNet:
    net = (NanoRestorerNet if arm.numbers else OpenNet)(**SHAPE)
    net.survey = Survey(SHAPE['cond_size'], widths=SURVEY)
    return net


def guesses_of(photo, numbers, arm: Arm):
    "First guesses. Without numbers there is no kernel to undo, but the median across streaks, which needs none, is always there."
    if arm.numbers:
        return first_guesses(photo, numbers)
    return torch.cat(
        [photo.new_zeros(len(photo), 6, *photo.shape[-2:]), torch.stack([row_median(p) - p for p in photo])],
        1,
    )


class Told:
    "Numbers and texts of diagnoses, as an arm hands them to its network."

    def __init__(self, arm: Arm, diagnoses: list, read: CotReader):
        self.numbers = (
            diagnosis_vectors(diagnoses) if arm.numbers else diagnosis_vectors([Diagnosis()] * len(diagnoses))
        )
        written = diagnoses if arm.text == 'cot' else [Diagnosis(scene=d.scene) for d in diagnoses]
        self.states = [read([d])[0][0] for d in written] if arm.text else None

    def __call__(self, i: list[int]):  # -> numbers (B, D); text (B, T, C) and mask (B, T), or None twice
        if self.states is None:
            return self.numbers[i], None, None
        rows = [self.states[j] for j in i]
        return self.numbers[i], *(
            torch.nn.utils.rnn.pad_sequence(x, batch_first=True)
            for x in (rows, [r.new_ones(len(r), dtype=torch.bool) for r in rows])
        )


class Pool:
    "Pairs in half precision, kept in a file, with both diagnoses of each."

    def __init__(self, path: Path, make, diagnose):  # make: () -> (pairs, conditions)
        if not path.exists():
            pairs, conditions = make()
            said = Predictions(diagnose, path.with_suffix('.jsonl'))
            for i in range(0, len(pairs), 16):
                said(pairs[i : i + 16])
            with atomic_path(path) as part:
                torch.save(
                    dict(
                        damaged=torch.stack([p.degraded for p in pairs]).half(),
                        clean=torch.stack([p.clean for p in pairs]).half(),
                        names=[p.name for p in pairs],
                        conditions=conditions,
                        true=[p.diagnosis.to_dict() for p in pairs],
                        predicted=[d.to_dict() for d in said(pairs)],
                    ),
                    part,
                )
        kept = torch.load(path, weights_only=True, mmap=True)
        self.damaged, self.clean, self.names, self.conditions = (
            kept[k] for k in ('damaged', 'clean', 'names', 'conditions')
        )
        self.diagnoses = {k: [Diagnosis.from_dict(d) for d in kept[k]] for k in ('true', 'predicted')}


def learn(
    arm: Arm, pool: Pool, read: CotReader, seed: int, updates: int, rate: float
) -> tuple[NanoRestorerNet, float]:
    "The averaged network after all updates, and the mean loss of the last tenth."
    torch.manual_seed(seed)
    net = new_net(arm).train().to(memory_format=torch.channels_last)
    told = Told(arm, pool.diagnoses[arm.source or 'true'], read)
    optimizer, average, losses = (
        torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4),
        WeightAverage(net, 0.995),
        [],
    )
    for step in range(updates):
        g = seeded(seed * 1_000_003 + step)
        i, places = (
            torch.randint(len(pool.names), (PAIRS,), generator=g).tolist(),
            torch.randint(SIZE - PATCH + 1, (PAIRS, 2), generator=g),
        )
        cut = lambda x: torch.stack(
            [x[j, :, t : t + PATCH, l : l + PATCH].float() for j, (t, l) in zip(i, places.tolist())]
        )
        numbers, text, mask = told(i)
        photo, numbers = cut(pool.damaged), shake_numbers(numbers, g)
        batch = Batch(
            photo,
            cut(pool.clean),
            numbers,
            text,
            mask,
            glance_at(pool.damaged[i].float()),
            torch.cat([places, places + PATCH], 1) / SIZE,
            guesses_of(photo, numbers, arm),
        )
        loss = flow_loss(net, batch, g)
        for group in optimizer.param_groups:
            group['lr'] = rate * schedule(step / updates, 0.03)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        average.update(net)
        losses.append(loss.item())
    net.load_state_dict(average.weights)
    return net.eval(), float(np.mean(losses[-max(1, updates // 10) :]))


@torch.no_grad()
def restored(net, photo, numbers, text, mask, arm: Arm):
    "One step from the start, as in use."
    noise = torch.randn(photo.shape, generator=seeded(0))
    change = net(
        photo + net.config['start_noise'] * noise,
        photo.new_ones(len(photo)),
        photo,
        text,
        mask,
        numbers,
        guesses=guesses_of(photo, numbers, arm),
    )
    return (photo + change).clamp(0, 1)


def tests_of(arm: Arm, pool: Pool) -> dict[str, list]:
    "What the network is told in the test. The wrong diagnosis is the predicted one of another photo with the same kind of test."
    n = len(pool.names)
    if arm.source is None:
        return {'none': [Diagnosis()] * n}  # it has no ears: one answer whatever is said
    same = defaultdict(list)
    for i, c in enumerate(pool.conditions):
        same[c].append(i)
    other = {i: row[(k + 5) % len(row)] for row in same.values() for k, i in enumerate(row)}
    said = pool.diagnoses['predicted']
    return {
        'none': [Diagnosis()] * n,
        'true': pool.diagnoses['true'],
        'predicted': said,
        'wrong': [said[other[i]] for i in range(n)],
    }


def records(name: str, seed: int, net, pool: Pool, read: CotReader) -> list[dict]:
    "Gain in PSNR of every photo, dB, under everything that the network is told; one record for each of these and each condition."
    rows = []
    for kind, diagnoses in tests_of(ARMS[name], pool).items():
        told, gains = Told(ARMS[name], diagnoses, read), {c: defaultdict(list) for c in CONDITIONS}
        for i in range(len(pool.names)):
            photo, clean = pool.damaged[i : i + 1].float(), pool.clean[i].float()
            gain = psnr(restored(net, photo, *told([i]), ARMS[name])[0], clean) - psnr(photo[0], clean)
            gains[pool.conditions[i]][pool.names[i]].append(round(float(gain), 3))
        rows += [dict(trained=name, told=kind, seed=seed, condition=c, gains=g) for c, g in gains.items()]
    return rows


def test_pairs(folders) -> tuple[list, list]:
    "Every photo once with each kind and twice with one to three, and which of these it is."
    made = [
        (PairStream([path], SIZE, recipe, seed=1000 * k + n)[j], name)
        for k, (name, (recipe, times)) in enumerate(CONDITIONS.items())
        for n, path in enumerate(p for f in folders for p in clean_photos(f))
        for j in range(times)
    ]
    return [p for p, _ in made], [c for _, c in made]


def means(rows: list[dict]) -> list[dict]:
    "The mean gain of every network, seed by seed."
    return [
        {k: r[k] for k in ('trained', 'told', 'seed', 'condition')}
        | dict(gain=round(float(np.mean(sum(r['gains'].values(), []))), 3))
        for r in rows
    ]


DECISIVE = (
    (('predicted', 'predicted'), ('none', 'none')),
    (('true', 'predicted'), ('none', 'none')),
    (('predicted', 'predicted'), ('true', 'predicted')),
    (('true', 'true'), ('predicted', 'true')),
    (('numbers', 'predicted'), ('predicted', 'predicted')),
    (('text', 'predicted'), ('none', 'none')),
    (('scene', 'predicted'), ('none', 'none')),
)  # (trained, told) against (trained, told)


def differences(rows: list[dict]) -> list[dict]:
    "How much better one network is than another, dB: mean over seeds and photos, 95% interval by drawing photos."

    def by_photo(cell, condition):
        found = defaultdict(list)
        for r in rows:
            if (r['trained'], r['told'], r['condition']) != (*cell, condition):
                continue
            for photo, gains in r['gains'].items():
                found[photo] += gains
        return found

    made = []
    for (a, b), condition in product(DECISIVE, CONDITIONS):
        x, y = by_photo(a, condition), by_photo(b, condition)
        if not x or not y:
            continue
        change = np.array([np.mean(x[p]) - np.mean(y[p]) for p in x])
        low, high = bootstrap(change, np.mean)
        made.append(
            dict(
                trained=a[0],
                told=a[1],
                against=list(b),
                condition=condition,
                **{k: round(float(v), 2) for k, v in dict(gain=change.mean(), low=low, high=high).items()},
            )
        )
    return made


def report(rows: list[dict]):
    "Gains in dB, mean and spread over seeds; then what decides."
    found = means(rows)

    def cell(**which):
        gains = [r['gain'] for r in found if all(r[k] == v for k, v in which.items())]
        return (
            f'{np.mean(gains):+.2f}' + (f' ± {np.std(gains, ddof=1):.2f}' if len(gains) > 1 else '')
            if gains
            else ''
        )

    for condition in CONDITIONS:
        table = Table(
            caption=f'{condition}: gain in PSNR, dB, mean over seeds ± their standard deviation; rows: trained with, columns: told in the test'
        )
        for name in dict.fromkeys(r['trained'] for r in rows):
            table.append(
                {'trained with': name}
                | {
                    t: cell(trained=name, told=t, condition=condition)
                    for t in ('none', 'true', 'predicted', 'wrong')
                }
            )
        print(table, '\n')
    for r in differences(rows):
        print(
            'trained with {trained}, told {told}, against {against}, {condition}: {gain:+.2f} dB [{low:+.2f}, {high:+.2f}]'.format(
                **r
            )
        )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='*', help='clean photos to learn from, then folders to test on')
    p.add_argument('--work', type=Path, help='folder for pairs, diagnoses and weights')
    p.add_argument(
        '--out',
        type=Path,
        required=True,
        help='records, one line for each network, thing that it is told, and condition',
    )
    p.add_argument(
        '--exclude',
        type=Path,
        nargs='+',
        default=(),
        help='photos, or tab-separated tables of photos, to leave out',
    )
    p.add_argument(
        '--captions', type=Path, help='JSON lines of scene descriptions, for the scene in true diagnoses'
    )
    p.add_argument('--arms', nargs='+', default=list(ARMS), choices=list(ARMS))
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--pool', type=int, default=1200, help='pairs to learn from')
    p.add_argument('--updates', type=int, default=1000)
    p.add_argument('--learning-rate', type=float, default=1e-3)
    p.add_argument('--threads', type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows = Kept(a.out)
    if a.work:
        a.work.mkdir(parents=True, exist_ok=True)
        reasoner = Reasoner.from_pretrained('nano')
        read = CotReader(reasoner.model.model.language_model, reasoner.tokenizer, 'cpu', remember=10**6)
        diagnose = lambda photos: measured_diagnoses(reasoner, photos)

        def learning_pairs():
            photos = [
                f for f in clean_photos(a.photos[0], read_exclusions(*a.exclude)) if short_side(f) >= SIZE
            ]
            stream = PairStream(
                photos, SIZE, LEARN, seed=0, scenes=load_captions(a.captions) if a.captions else None
            )
            return [stream[i] for i in range(a.pool)], ['learn'] * a.pool

        test, pool = (
            Pool(a.work / 'test.pt', lambda: test_pairs(a.photos[1:]), diagnose),
            Pool(a.work / 'learn.pt', learning_pairs, diagnose),
        )
        known = {(r['trained'], r['seed']) for r in rows}
        for seed in a.seeds:
            for name in a.arms:
                if (name, seed) in known:
                    continue
                began, weights = time.process_time(), a.work / f'{name}_{seed}.safetensors'
                if weights.exists():
                    net = new_net(ARMS[name]).eval()
                    net.load_state_dict(load_file(weights))
                else:
                    net, loss = learn(ARMS[name], pool, read, seed, a.updates, a.learning_rate)
                    with atomic_path(weights) as part:
                        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, part)
                    print(
                        f'{name}, seed {seed}: loss {loss:.3f} after {a.updates} updates, {(time.process_time() - began) / 60:.1f} CPU minutes',
                        flush=True,
                    )
                new = records(name, seed, net, test, read)
                rows.add(*new)
    report(rows)


if __name__ == '__main__':
    main()
