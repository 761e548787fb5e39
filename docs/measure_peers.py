"""Strong peers on public benchmarks, on a subset because they are slow.

    python docs/measure_peers.py --noise CBSD68 --every 32 --out docs/measured/peers.jsonl
    python docs/measure_peers.py --pairs SOTS hazy clear dehazing-indoor --pairs Rain100H rain clean deraining \\
        --maxim FOLDER --every 16 --out docs/measured/peers.jsonl

BM3D, blind (its noise estimated) and told the noise; MAXIM, which was trained on the training halves of those very
sets; and the shipped weights, blind, diagnosis included. FOLDER has the MAXIM packages of docs/maxim.py. With --again
METHOD that method is measured once more in the records that are there, after a change."""

import argparse, json, time
from functools import cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from kept import Kept

from rr.core import atomic_path, psnr
from rr.evaluate import bm3d, noisy_photos, paired_photos
from rr.pipeline import ReasonRestore
from rr.severity import Table


def told_bm3d(image, sigma: float):  # sigma: 8-bit levels
    "BM3D that is told the noise."
    from bm3d import bm3d_rgb

    return (
        torch.from_numpy(bm3d_rgb(image.permute(1, 2, 0).double().numpy(), sigma / 255))
        .float()
        .permute(2, 0, 1)
        .clamp(0, 1)
    )


def jobs(a):  # -> (benchmark, pairs, methods by name)
    pipe = (
        ReasonRestore.from_pretrained()
    )  # before TensorFlow, which does not bear that Triton comes after it

    def nano(image):
        told = pipe.told(image, pipe.reasoner.reply([image.clamp(0, 1)])[0].diagnosis)
        return pipe.restorer.restore([image], [told])[0]

    for sigma in (15, 25, 50) if a.noise else ():
        yield (
            f'{a.noise.name}, noise {sigma}',
            noisy_photos(a.noise, sigma),
            {'BM3D, blind': bm3d, 'BM3D, told sigma': partial(told_bm3d, sigma=sigma), 'nano, blind': nano},
        )
    for name, damaged, clean, task in a.pairs:
        load = cache(partial(load_maxim, a.maxim / task))
        yield (
            name,
            paired_photos(damaged, clean),
            {f'MAXIM {task}': lambda x, load=load: load()(x), 'nano, blind': nano},
        )


def load_maxim(folder):
    from maxim import Maxim

    return Maxim(folder)


def summary(rows: list[dict]) -> list[dict]:
    "Mean PSNR and CPU seconds of each method on each benchmark."
    made, mean = [], lambda values, digits: round(float(np.mean(list(values))), digits)
    for benchmark in dict.fromkeys(r['benchmark'] for r in rows):
        same = [r for r in rows if r['benchmark'] == benchmark]
        made.append(
            dict(
                benchmark=benchmark,
                photos=len(same),
                method='as it is',
                PSNR=mean((r['input'] for r in same), 2),
                seconds=0.0,
            )
        )
        made += [
            dict(
                benchmark=benchmark,
                photos=len(same),
                method=name,
                PSNR=mean((r['psnr'][name] for r in same), 2),
                seconds=mean((r['seconds'][name] for r in same), 1),
            )
            for name in same[0]['psnr']
        ]
    return made


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--noise', type=Path, help='folder of clean photos, such as CBSD68')
    p.add_argument(
        '--pairs', nargs=4, action='append', default=[], metavar=('NAME', 'DAMAGED', 'CLEAN', 'TASK')
    )
    p.add_argument('--maxim', type=Path)
    p.add_argument('--every', type=int, default=4, help='every how many photos of a set')
    p.add_argument(
        '--out', type=Path, required=True, help='records, one line a photo; goes on where it stopped'
    )
    p.add_argument('--again', metavar='METHOD', help="such as 'nano, blind'")
    a = p.parse_args()
    rows, loaded = Kept(a.out), set()
    known = {(r['benchmark'], r['photo']): r for r in rows}
    for benchmark, pairs, methods in jobs(a):
        for pair in islice(pairs, 0, None, a.every):
            row = known.get((benchmark, pair.name))
            asked = {n: m for n, m in methods.items() if row is None or n == a.again}
            new = row is None
            row = row or dict(
                benchmark=benchmark,
                photo=pair.name,
                input=round(float(psnr(pair.degraded, pair.clean)), 3),
                psnr={},
                seconds={},
            )
            for name, method in asked.items():
                if name not in loaded:
                    method(
                        pair.degraded[:, :256, :256]
                    )  # loads what it needs, so that the clock does not count it
                    loaded.add(name)
                began = time.process_time()
                image = method(pair.degraded)
                row['seconds'][name] = round(time.process_time() - began, 2)
                row['psnr'][name] = round(float(psnr(image, pair.clean)), 3)
            if new:
                rows.add(row)
    if a.again:
        with atomic_path(a.out, overwrite=True) as file:
            file.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    print(Table(summary(rows), caption='Mean PSNR in dB and CPU seconds a photo'))


if __name__ == '__main__':
    main()
