"""Strong peers on public benchmarks, on a subset because they are slow: python docs/measure_peers.py --noise CBSD68 --pairs SOTS hazy clear dehazing-indoor --pairs Rain100H rain clean deraining --maxim FOLDER --every 4 --beside docs/measured/benchmarks.jsonl --out docs/measured/peers.jsonl

BM3D, blind (its noise estimated) and told the noise; MAXIM, which was trained on the training halves of those very sets. `--beside` gives what the shipped restorer reached on the same photos. FOLDER has the
MAXIM packages of docs/maxim.py."""
import argparse, json, time
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np

from rr.core import psnr, to_tensor
from rr.evaluate import bm3d, noisy_photos, paired_photos
from rr.severity import Table

def told_bm3d(image, sigma:float):  # sigma: 8-bit levels
    "BM3D that is told the noise."
    from bm3d import bm3d_rgb
    return to_tensor(np.ascontiguousarray(bm3d_rgb(image.permute(1, 2, 0).double().numpy(), sigma / 255))).float().clamp(0, 1)

def jobs(a):  # -> (benchmark, pairs, methods by name)
    for sigma in (15, 25, 50) if a.noise else ():
        yield f'{a.noise.name}, noise {sigma}', noisy_photos(a.noise, sigma), {'BM3D, blind': lambda x: bm3d(x), 'BM3D, told sigma': partial(told_bm3d, sigma=sigma)}
    for name, damaged, clean, task in a.pairs:
        load = cache(partial(load_maxim, a.maxim/task))
        yield name, paired_photos(damaged, clean), {f'MAXIM {task}': lambda x, load=load: load()(x)}

def load_maxim(folder):
    from maxim import Maxim
    return Maxim(folder)

def summary(rows:list[dict], nano:list[dict]) -> list[dict]:
    "Mean PSNR and seconds of each method on each benchmark, and of the shipped restorer on the same photos."
    made, known = [], {(r['condition'], r['name']): r for r in nano}
    for benchmark in dict.fromkeys(r['benchmark'] for r in rows):
        same = [r for r in rows if r['benchmark'] == benchmark]
        beside = [known[benchmark, r['photo']] for r in same if (benchmark, r['photo']) in known]
        def add(method, psnrs, seconds): made.append(dict(benchmark=benchmark, photos=len(psnrs), method=method, PSNR=round(float(np.mean(psnrs)), 2), seconds=round(float(np.mean(seconds)), 1)))
        add('as it is', [r['input'] for r in same], [0.])
        for name in same[0]['psnr']: add(name, [r['psnr'][name] for r in same], [r['seconds'][name] for r in same])
        for key in [k for k in ('predicted', 'true') if beside and k in beside[0]['psnr']]:
            add(f'nano, {key} diagnosis', [r['psnr'][key] for r in beside], [r['seconds'][key] for r in beside])
    return made

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--noise', type=Path, help='folder of clean photos, such as CBSD68')
    p.add_argument('--pairs', nargs=4, action='append', default=[], metavar=('NAME', 'DAMAGED', 'CLEAN', 'TASK'))
    p.add_argument('--maxim', type=Path)
    p.add_argument('--every', type=int, default=4, help='every how many photos of a set')
    p.add_argument('--beside', type=Path, help='records of docs/measure_benchmarks.py')
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo; goes on where it stopped')
    a = p.parse_args()
    rows = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
    known = {(r['benchmark'], r['photo']) for r in rows}
    for benchmark, pairs, methods in jobs(a):
        for pair in islice(pairs, 0, None, a.every):
            if (benchmark, pair.name) in known: continue
            row = dict(benchmark=benchmark, photo=pair.name, input=round(float(psnr(pair.degraded, pair.clean)), 3), psnr={}, seconds={})
            for name, method in methods.items():
                method(pair.degraded[:, :64, :64])  # loads what it needs, so that the clock does not count it
                began = time.perf_counter()
                image = method(pair.degraded)
                row['seconds'][name] = round(time.perf_counter() - began, 2)
                row['psnr'][name] = round(float(psnr(image, pair.clean)), 3)
            rows.append(row)
            with open(a.out, 'a') as file: file.write(json.dumps(row) + '\n')
    nano = list(map(json.loads, a.beside.read_text().splitlines())) if a.beside else []
    print(Table(summary(rows, nano), caption='Mean PSNR in dB and seconds a photo; nano on the same photos'))

if __name__ == '__main__': main()
