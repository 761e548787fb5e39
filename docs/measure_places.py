"""Does asking about parts of a photo tell where its damage is, and does that help the restorer? python docs/measure_places.py Kodak24 McMaster --out docs/measured/places.jsonl

Every photo twice: with one or two kinds, each in a part of it, and with one to four kinds everywhere. The reasoner is asked about the whole and about its parts (`rr.places`). With the four kinds
of the restorer also the PSNR of the photo restored by either diagnosis, and by the true one with its regions and without. Records that are there already are kept. With --choose instead what other
shapes and limits of `place_of` would make of the maps in the records."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from kept import Kept, photo_arguments
from measure_seven import damaged

from rr.core import psnr
from rr.data import SEVEN, Recipe, read_exclusions
from rr.degrade import PAPER_KINDS, REGIONS
from rr.diagnosis import Diagnosis
from rr.evaluate import PRESENT, evaluation_photos
from rr.pipeline import ReasonRestore
from rr.places import WEAK, place_of, place_templates, severity_map, with_places
from rr.reasoner import SURE
from rr.severity import Table

ROUNDS = {  # reasoner and its kinds
    'nano': PAPER_KINDS,
    'nano-seven': SEVEN,
}
WHERE = {'in a part': dict(max_kinds=2, region_share=1.0), 'everywhere': dict(max_kinds=4)}


def plain(diagnosis: Diagnosis) -> dict:
    "Severity and region of each finding."
    return {k: [f.severity, f.region] for k, f in diagnosis.findings.items()}


def record(pipeline, pair, restore: bool) -> dict:
    photo, truth = pair.degraded.clamp(0, 1), pair.diagnosis
    reply = pipeline.reasoner.reply([photo])[0]
    found = severity_map(pipeline.reasoner, photo)
    told = dict(whole=pipeline.told(photo, reply.diagnosis, reply.present) if restore else reply.diagnosis)
    told['parts'] = with_places(pipeline.reasoner, photo, told['whole'], found)
    row = dict(true=plain(truth), **{k: plain(d) for k, d in told.items()}, size=list(found.size))
    row |= dict(severity=found.severity.round().int().flatten(1).tolist(), present=[[round(p, 3) for p in r] for r in found.present.flatten(1).tolist()])
    if not restore:
        return row
    told |= {'truth, places': truth, 'truth, no places': replace(truth, findings={k: replace(f, region='') for k, f in truth.findings.items()})}
    score = lambda image: round(min(float(psnr(image, pair.clean)), 100.0), 3)
    outs = pipeline.restorer.restore([pair.degraded] * len(told), list(told.values()))
    return row | dict(psnr=dict(damaged=score(photo)) | {k: score(o) for k, o in zip(told, outs)})


def asked(rows: list[dict], reasoner: str, where: str) -> list[dict]:
    return [r for r in rows if (r['reasoner'], r['where']) == (reasoner, where)]


def rounds(rows: list[dict]) -> list[tuple]:
    return list(dict.fromkeys((r['reasoner'], r['where']) for r in rows))


def seen(rows: list[dict]) -> list[dict]:
    "Kinds of severity 15 or more that are named, kinds that are not there, and the error of the severity over all kinds, points."
    made = []
    for reasoner, where in rounds(rows):
        chosen = asked(rows, reasoner, where)
        for key in ('whole', 'parts'):
            found = sum(k in r[key] for r in chosen for k, (severity, _) in r['true'].items() if severity >= PRESENT)
            there = sum(severity >= PRESENT for r in chosen for severity, _ in r['true'].values())
            false = sum(k not in r['true'] for r in chosen for k in r[key])
            errors = [abs(r[key].get(k, [0])[0] - r['true'].get(k, [0])[0]) for r in chosen for k in ROUNDS[reasoner]]
            made.append(dict(reasoner=reasoner, damage=where, asked=key, photos=len(chosen), there=there, found=found, false=false, error=round(float(np.mean(errors)), 1)))
    return made


def named(rows: list[dict]) -> list[dict]:
    "Of the kinds that are found: how many get a place, and how many the right one; 'distance' and 'foreground' cannot be named."
    made = []
    for reasoner, where in rounds(rows):
        pairs = [(r['parts'][k][1], region) for r in asked(rows, reasoner, where) for k, (severity, region) in r['true'].items() if severity >= PRESENT and k in r['parts']]
        known = [(a, b) for a, b in pairs if b in (*REGIONS, '')]
        most = max((sum(b == region for _, b in known) for region in ('', *REGIONS)), default=0)
        made.append(dict(reasoner=reasoner, damage=where, found=len(pairs), placed=sum(bool(a) for a, _ in pairs), nameable=len(known), right=sum(a == b for a, b in known), commonest=most))
    return made


def gains(rows: list[dict]) -> list[dict]:
    "Mean PSNR, dB: as it is, restored by either diagnosis, and by the true one with its places and without; photos that the places make better and worse."
    made = []
    for where in WHERE:
        chosen = [r['psnr'] for r in asked(rows, 'nano', where)]
        if chosen:
            means = {k: round(float(np.mean([p[k] for p in chosen])), 2) for k in chosen[0]}
            change = np.array([p['parts'] - p['whole'] for p in chosen])
            made.append(dict(damage=where, photos=len(chosen)) | means | dict(better=int((change > 0.01).sum()), worse=int((change < -0.01).sum())))
    return made


def choices(rows: list[dict]) -> list[dict]:
    "By powers of the templates and the error that a place may leave: kinds of severity 15 or more in a part that are found, right places, and false kinds, in a part and everywhere."
    made = []
    for shapes in ((1.0,), (2.0,), (0.5, 2.0), (0.5, 1.0, 3.0)):
        templates = {size: place_templates(*size, shapes=shapes) for size in {tuple(r['size']) for r in rows}}
        for clearer in (0.2, 0.3, 0.4, 0.5):
            count = dict.fromkeys(('there', 'found', 'right', 'false', 'false, everywhere'), 0)
            for r in rows:
                for kind, severity, present in zip(ROUNDS[r['reasoner']], r['severity'], r['present']):
                    place, there = place_of(torch.tensor(severity).float().view(4, 4), templates[tuple(r['size'])], clearer)
                    local = bool(place) and max(present) > SURE and (kind in r['whole'] or there >= WEAK)
                    found, (strength, region) = local or kind in r['whole'], r['true'].get(kind, (0, ''))
                    if r['where'] == 'in a part' and strength >= PRESENT:
                        count['there'] += 1
                        count['found'] += found
                        count['right'] += local and place == region
                    if not strength:
                        count['false' + ', everywhere' * (r['where'] == 'everywhere')] += found
            made.append(dict(shapes=' '.join(f'{s:g}' for s in shapes), limit=clearer) | count)
    return made


def report(rows: list[dict]):
    for make in (seen, named, gains):
        print(Table(make(rows), caption=make.__doc__), end='\n\n')


def main():
    p = photo_arguments(__doc__)
    p.add_argument('--reasoners', nargs='+', choices=list(ROUNDS), default=list(ROUNDS))
    p.add_argument('--exclude', type=Path, nargs='+', default=(), help='photos that are not clean, or tables of them, as for `rr degrade`')
    p.add_argument('--choose', action='store_true', help='no new records; other settings, on those that are there')
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    rows, left_out = Kept(a.out), read_exclusions(*a.exclude)
    if a.choose:
        return print(Table(choices(rows), caption=choices.__doc__))
    known = {(r['reasoner'], r['where'], r['name']) for r in rows}
    for reasoner in a.reasoners:
        pipeline = ReasonRestore.from_pretrained(reasoner)
        for source in [s for s in evaluation_photos(a.photos) if s.path not in left_out][:: a.every]:
            for where, options in WHERE.items():
                if (reasoner, where, source.name) not in known:
                    pair = damaged(source, Recipe(ROUNDS[reasoner], **options), 0)
                    rows.add(dict(reasoner=reasoner, where=where, name=source.name) | record(pipeline, pair, reasoner == 'nano'))
    report(rows)


if __name__ == '__main__':
    main()
