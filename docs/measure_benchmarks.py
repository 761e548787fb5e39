"""What the shipped weights reach on public benchmarks: python docs/measure_benchmarks.py --noise CBSD68 --pairs Rain100H rainy clear --pairs SOTS hazy clear --out docs/measured/benchmarks.jsonl

Gaussian noise of sigma 15, 25 and 50 without clipping: blind, and told that it can only be noise, as a blind denoiser is; and folders of damaged photos with their clean twins. Nothing here is trained or
tuned on them."""
import argparse
from pathlib import Path

from rr.evaluate import evaluate_pairs, noisy_photos, paired_photos
from rr.pipeline import IN_DOUBT, ReasonRestore

NOISE, PAIRS = ('non-local means',), ('dark channel', 'row median', 'non-local means')  # classical methods beside it
FAR = 2  # dB by which a wrong kind in the diagnosis shows

def mean_psnr(results) -> dict[str, float]:
    "Mean PSNR of each method over the photos, dB; a photo that comes back as it is in the clean twin counts 100."
    rows = [r['psnr'] for r in results.records]
    return {m: sum(100. if r[m] is None else r[m] for r in rows) / len(rows) for m in rows[0]}

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--noise', type=Path, help='folder of clean photos, such as CBSD68')
    p.add_argument('--pairs', nargs=3, action='append', default=[], metavar=('NAME', 'DAMAGED', 'CLEAN'))
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo; goes on where it stopped')
    p.add_argument('--in-doubt', type=float, default=IN_DOUBT, help='as for `ReasonRestore`')
    a = p.parse_args()
    blind = ReasonRestore.from_pretrained(in_doubt=a.in_doubt)
    denoiser = ReasonRestore(blind.reasoner, blind.restorer, only=('noise',))
    jobs = [(f'{a.noise.name}, noise {s}{note}', noisy_photos(a.noise, s), classical, pipeline) for note, classical, pipeline in (('', NOISE, blind), (', told that it is noise', (), denoiser))
            for s in (15, 25, 50)] if a.noise else []
    jobs += [(name, paired_photos(damaged, clean), PAIRS, blind) for name, damaged, clean in a.pairs]
    for name, pairs, classical, pipeline in jobs:
        results = evaluate_pairs(pairs, name, pipeline, classical, out=a.out, progress=False)
        change = [(r['psnr']['predicted'] or 100.) - r['psnr']['input'] for r in results.records]
        print(f'{name}, {len(results.records)} photos: ' + ', '.join(f'{m} {v:.2f}' for m, v in mean_psnr(results).items()) +
              f'; predicted is better than the input in {sum(c > 0 for c in change)}, equal in {sum(c == 0 for c in change)}, worse in {sum(c < 0 for c in change)}', flush=True)
        short = [r['psnr']['true'] - (r['psnr']['predicted'] or 100.) for r in results.records if r['psnr'].get('true')]
        near = [s for s in short if s <= FAR]
        if near: print(f'  {len(short) - len(near)} of them fall more than {FAR} dB short of the true diagnosis (by {max(short):.1f} dB at most), the others {sum(near) / len(near):.3f} dB on average', flush=True)

if __name__ == '__main__': main()
