"""How well does `nano-seven` diagnose the kinds beyond the paper's four, and places? python docs/measure_seven.py Kodak24 McMaster --out docs/measured/seven.jsonl

Every photo under several conditions: one to four of all seven kinds (two draws), one to four of the paper's four, as in `rr.evaluate`; one or two kinds, each in a part of the
photo; undamaged. Asked are the reasoner of the four kinds, which cannot name the others, that of seven, and classical estimators, fitted on the bundled photos. With
--reasoners other weights; records that are there already are kept."""

import argparse
from pathlib import Path

import numpy as np
import torch
from kept import Kept

from rr.core import read_photo, seeded
from rr.data import SEVEN, Pair, Recipe, make_pair
from rr.degrade import PAPER_KINDS, kind_generator, pseudo_depth
from rr.evaluate import PRESENT, Condition, condition_pair, evaluation_photos, f1_score, fit_baselines, presence_counts, rank_correlation
from rr.reasoner import Reasoner
from rr.severity import Table

CONDITIONS = {  # recipe, how many draws for each photo
    'seven': (Recipe(SEVEN, max_kinds=4), 2),
    'paper': (Recipe(PAPER_KINDS, max_kinds=4), 1),
    'places': (Recipe(SEVEN, max_kinds=2, region_share=1.0), 1),
    'clean': (Recipe(clean_share=1.0), 1),
}


def damaged(source, recipe: Recipe, seed: int) -> Pair:
    "The photo, damaged as the recipe says; without regions just as `rr.evaluate` damages it."
    if not recipe.region_share:
        return condition_pair(source, Condition('', recipe), seed)
    g, clean = seeded(seed * 1_000_003 + source.index), read_photo(source.path).image
    severities, pair_seed = recipe.draw(g), int(torch.randint(2**31, (), generator=g))
    depth = pseudo_depth(clean, kind_generator('depth', pair_seed))  # the one that `degrade` makes up
    return make_pair(clean, severities, pair_seed, source.name, None, depth, recipe.regions(severities, depth, g))


def asked(reasoner: Reasoner):  # image -> severities of SEVEN, expected and written, regions, seconds
    "What a reasoner says about a photo, as a function."

    def ask(image):
        reply = reasoner.reply([image])[0]
        at, found = {k: round(float(s), 2) for k, s in zip(reply.kinds, reply.severity)}, reply.diagnosis.findings
        return dict(
            expected=[at.get(k, 0.0) for k in SEVEN],
            written=[reply.diagnosis.severity(k) for k in SEVEN],
            regions={k: f.region for k, f in found.items()},
            seconds=round(reply.seconds, 3),
        )

    return ask


def estimated(image, baselines) -> dict:
    "What classical estimators say about a photo, in the same form."
    found = [round(baselines.classical(image)[k], 2) for k in SEVEN]
    return dict(expected=found, written=found, regions={})


def errors(rows: list[dict], condition: str) -> list[dict]:
    "By reasoner: mean absolute error of each kind, F1 of presence and rank correlation over all kinds; last, what always saying the mean would err by."
    chosen, made = [r for r in rows if r['condition'] == condition], []
    each = lambda values: {k: round(float(v), 1) for k, v in zip(SEVEN, values)} | {'together': round(float(np.mean(values)), 1)}
    for label in dict.fromkeys(r['reasoner'] for r in chosen):
        for key in ('written', 'expected') if label != 'classical' else ('expected',):
            said, true = (np.array([r[k] for r in chosen if r['reasoner'] == label]) for k in (key, 'true'))
            f1, rank = f1_score(presence_counts(true, said).sum(1)), rank_correlation(said.ravel(), true.ravel())
            made.append(dict(reasoner=label, value=key) | each(np.abs(said - true).mean(0)) | dict(F1=round(f1, 2), rank=round(rank, 2)))
    true = np.array([r['true'] for r in chosen if r['reasoner'] == label])
    return made + [dict(reasoner='always the mean', value='') | each(np.abs(true - true.mean(0)).mean(0)) | dict(F1=None, rank=None)]


def presence(rows: list[dict]) -> list[dict]:
    "Of the mixtures of seven kinds, as written: error where a kind is there, how often it is seen there, and how often where it is not."
    made = []
    for label in dict.fromkeys(r['reasoner'] for r in rows):
        found = [r for r in rows if r['reasoner'] == label and r['condition'] == 'seven']
        if not found:
            continue
        said, true = (np.array([r[k] for r in found]) for k in ('written', 'true'))
        for i, kind in enumerate(SEVEN):
            there, absent, seen = true[:, i] >= PRESENT, true[:, i] == 0, said[:, i] >= PRESENT
            error = np.abs(said - true)[there, i].mean()
            made.append(
                dict(reasoner=label, kind=kind, photos=int(there.sum()), error=round(float(error), 1))
                | dict(seen=round(float(seen[there].mean()), 2), invented=round(float(seen[absent].mean()), 2))
            )
    return made


def places(rows: list[dict]) -> list[dict]:
    "Of the kinds that were found: how often a place is named, how often the right one, and how often the commonest would be."
    made = []
    for label in dict.fromkeys(r['reasoner'] for r in rows if r['reasoner'] != 'classical'):
        for condition, where in (('places', 'in a part of the photo'), ('seven', 'everywhere')):
            found = [r for r in rows if r['reasoner'] == label and r['condition'] == condition]
            pairs = [(r['places'][k], place) for r in found for k, place in r['regions'].items() if k in r['places']]
            if not pairs:
                continue
            true, said = zip(*pairs)
            share = lambda hits: round(sum(hits) / len(pairs), 2)
            right = share(a == b for a, b in pairs)
            made.append(
                dict(reasoner=label, damage=where, kinds=len(pairs), named=share(map(bool, said)), right=right)
                | dict(commonest=share(t == max(set(true), key=true.count) for t in true))
            )
    return made


def alarms(rows: list[dict]) -> list[dict]:
    "By reasoner: share of the undamaged photos that are called damaged, as written."
    clean = [r for r in rows if r['condition'] == 'clean']
    share = lambda label: float(np.mean([max(r['written']) >= PRESENT for r in clean if r['reasoner'] == label]))
    return [dict(reasoner=label, clean_called_damaged=round(share(label), 3)) for label in dict.fromkeys(r['reasoner'] for r in clean)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--reasoners', nargs='+', default=['nano', 'nano-seven'], help='names or folders; FOLDER=LABEL for another name in the records')
    p.add_argument('--conditions', nargs='+', choices=list(CONDITIONS), default=list(CONDITIONS))
    p.add_argument('--every', type=int, default=1, help='only every so many photos')
    p.add_argument('--out', type=Path, required=True)
    p.add_argument('--threads', type=int)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    baselines = fit_baselines(recipe=CONDITIONS['seven'][0])
    askers = {'classical': lambda image: estimated(image, baselines)}
    for name, _, label in (r.partition('=') for r in a.reasoners):
        askers[label or name] = asked(Reasoner.from_pretrained(name))
    rows = Kept(a.out)
    known = {(r['reasoner'], r['condition'], r['seed'], r['name']) for r in rows}
    photos = evaluation_photos(a.photos)[:: a.every]
    for condition, seed in ((c, seed) for c in a.conditions for seed in range(CONDITIONS[c][1])):
        for source in photos:
            missing = [k for k in askers if (k, condition, seed, source.name) not in known]
            if not missing:
                continue
            pair = damaged(source, CONDITIONS[condition][0], seed)
            true = [pair.diagnosis.severity(k) for k in SEVEN]
            about = dict(condition=condition, seed=seed, name=source.name, true=true)
            about['places'] = {k: f.region for k, f in pair.diagnosis.findings.items()}
            for label in missing:
                rows.add(dict(reasoner=label) | about | askers[label](pair.degraded))
    for name in [c for c in ('seven', 'paper') if c in a.conditions]:
        print(Table(errors(rows, name), caption=f'{name}: mean absolute error of the severity, points (absent = 0)'), '\n')
    print(Table(presence(rows), caption=f'seven: where a kind is there (severity >= {PRESENT}), and where it is not'), '\n')
    print(Table(places(rows), caption='places, of the kinds that were found'), '\n')
    print(Table(alarms(rows), caption='undamaged photos'))


if __name__ == '__main__':
    main()
