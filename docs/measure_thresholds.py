"""How sure must the reasoner be before it names a kind? python docs/measure_thresholds.py Kodak24 McMaster --every 2 --out docs/measured/thresholds.jsonl

Each photo damaged as in `rr evaluate` (mixed, one to four kinds), with Gaussian noise of sigma 25 alone, and clean; the
reasoner names what passes each threshold, and the restorer is told that. A file that is there is continued."""

import argparse, json
from pathlib import Path

import numpy as np

from rr.core import psnr
from rr.evaluate import CONDITIONS, condition_pair, evaluation_photos, noisy_photos
from rr.pipeline import ReasonRestore

THRESHOLDS, WEAK = (0.3, 0.5, 0.6, 0.7, 0.8), 15  # WEAK: severity below which a kind need not be seen


def pairs_of(folders, every: int):
    "Name of the condition, name of the photo, and a function that makes the pair."
    for source in evaluation_photos(folders, None)[::every]:
        for name in ('mixed', 'all kinds', 'clean'):
            yield name, source.name, lambda s=source, n=name: condition_pair(s, CONDITIONS[n], 0)
    for folder in folders:
        for pair in list(noisy_photos(folder, 25))[::every]:
            yield 'noise 25', f'{folder.name}/{pair.name}', lambda p=pair: p


def measured(pipeline, pair) -> dict:
    "For each threshold what was named, what the restorer was told, and the PSNR, dB (100: as the original)."
    photo, seen, row = pair.degraded.clamp(0, 1), {}, {}
    for threshold in THRESHOLDS:
        pipeline.reasoner.threshold = threshold
        reply = pipeline.reasoner.reply([photo])[0]
        named = reply.diagnosis.present
        if named not in seen:
            told = pipeline.told(photo, reply.diagnosis)
            restored = pipeline.restorer.restore([pair.degraded], [told])[0]
            seen[named] = dict(named=list(named), told=told.severities(), psnr=round(min(float(psnr(restored, pair.clean)), 100.0), 3))
        row[str(threshold)] = seen[named]
    return row


def report(rows: list[dict]):
    for condition in dict.fromkeys(r['condition'] for r in rows):
        found = [r for r in rows if r['condition'] == condition]
        print(f'{condition}, {len(found)} photos')
        for t in map(str, THRESHOLDS):
            alarms = sum(k not in r['true'] for r in found for k in r['by'][t]['named'])
            missed = sum(s >= WEAK and k not in r['by'][t]['named'] for r in found for k, s in r['true'].items())
            print(f"  above {t}: {np.mean([r['by'][t]['psnr'] for r in found]):6.2f} dB, {alarms} kinds named that are not there, "
                  f'{missed} of severity {WEAK} or more missed')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folders', type=Path, nargs='+', help='clean photos')
    p.add_argument('--every', type=int, default=1, help='every so many photos')
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo and condition')
    a = p.parse_args()
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
    known, pipeline = {(r['condition'], r['name']) for r in rows}, ReasonRestore.from_pretrained()
    for condition, name, make in pairs_of(a.folders, a.every):
        if (condition, name) in known:
            continue
        pair = make()
        true = {k: s for k, s in pair.diagnosis.severities().items() if s}
        rows.append(dict(condition=condition, name=name, true=true, by=measured(pipeline, pair)))
        with open(a.out, 'a') as file:
            file.write(json.dumps(rows[-1]) + '\n')
    report(rows)


if __name__ == '__main__':
    main()
