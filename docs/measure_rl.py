"""What reinforcement learning changed: python docs/measure_rl.py Kodak24 McMaster --restorer nano OUT0/correction OUT1/correction --other-judge JUDGE --seeds 0 1 2 --out docs/measured/rl.jsonl

Photos are damaged as in `rr evaluate` and diagnosed once; each restorer is told the same. Beside the PSNR stands the severity that is left, summed over kinds: for the reasoner whose severities were the
reward, and for another one that gave none. The first restorer is what the others are compared with; OUT0/correction goes by the name of its folder, OUT0. A file that is there is continued, and what it
knows is not measured again: nothing but the photos is then needed for the table."""
import argparse
from functools import cache
from itertools import product
from pathlib import Path
from kept import Kept

from rr.evaluate import CONDITIONS, condition_pair, evaluation_photos
from rr.finetune import TowerJudge
from rr.flow import Predictions
from rr.reasoner import Reasoner
from rr.reinforce import change_table, measure
from rr.restorer import NanoRestorer, measured_diagnoses

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--restorer', nargs='+', default=['nano', 'nano-rl'], help='names or folders; the first is what the others are compared with')
    p.add_argument('--other-judge', type=Path, help='folder with the tower.pt of rr.finetune tower')
    p.add_argument('--conditions', nargs='+', default=['mixed'], choices=list(CONDITIONS))
    p.add_argument('--seeds', type=int, nargs='+', default=[0], help='of the damage: each photo is damaged once with each')
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo and restorer')
    a = p.parse_args()
    reasoner = cache(lambda: Reasoner.from_pretrained('nano'))
    judges = cache(lambda: dict(judge=reasoner()) | (dict(other=TowerJudge.from_checkpoint(a.other_judge)) if a.other_judge else {}))
    load = cache(lambda name: NanoRestorer.from_pretrained(name, reasoner=(reasoner().model, reasoner().processor)))
    restorers = {Path(name).parent.name or name: name for name in a.restorer}
    rows = Kept(a.out)
    known = {(r['condition'], r['photo'], r['draw'], r['restorer']) for r in rows}
    diagnose = {c: Predictions(lambda photos: measured_diagnoses(reasoner(), photos), a.out.with_name(f'{a.out.stem}.{c}.diagnoses.jsonl')) for c in a.conditions}
    for condition, draw, source in product(a.conditions, a.seeds, evaluation_photos(a.photos)):
        missing = [name for name in restorers if (condition, source.name, draw, name) not in known]
        if not missing: continue
        pair = condition_pair(source, CONDITIONS[condition], draw)
        told = diagnose[condition]([pair])
        new = [dict(condition=condition, restorer=name, draw=draw) | measure(load(restorers[name]), [pair], told, judges())[0] for name in missing]
        rows.add(*new)
    asked = [r for r in rows if r['restorer'] in restorers and r['condition'] in a.conditions and r['draw'] in a.seeds]
    print(change_table(asked, next(iter(restorers))))

if __name__ == '__main__': main()
