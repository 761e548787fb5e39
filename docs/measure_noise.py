"""What the photo itself says of its noise, and of rain in it: python docs/measure_noise.py Kodak24 McMaster --out docs/measured/noise.jsonl

Each photo gets noise of every type at several severities, as computed and as JPEG of quality 90; beside what the reasoner states stands what is measured on the photo's patches. Then rain under Gaussian
noise: the skewness along lines of what the network for noise alone takes away. The limits NEAR and STREAKS of the package are to be read against these figures."""
import argparse, json, math
from pathlib import Path

import numpy as np
import torch
from measure_blur import as_jpeg

from rr.core import atomic_path, read_photo, seeded
from rr.degrade import degrade
from rr.diagnosis import Diagnosis, Finding
from rr.evaluate import evaluation_photos
from rr.nano import STREAKS, measure_noise, streak_skewness
from rr.reasoner import Reasoner
from rr.restorer import NanoRestorer

TYPES, SEVERITIES, RAIN = ('gaussian', 'poisson', 'camera'), (15, 40, 80, 95), (0, 15, 30, 60)

def parameters(kind, seed):
    "Of noise of that type; what else it needs is drawn as `rr.degrade` draws it."
    read_share = float(torch.empty(()).uniform_(.1, .6, generator=seeded(seed)))
    return {'noise': {'type': kind} | ({'read_share': read_share} if kind == 'camera' else {})}

def noise_records(reasoner, source):
    "Types and levels, 8-bit levels at mid grey, of one photo; None where nothing is found."
    clean, seed = read_photo(source.path).image, source.index
    for kind in TYPES:
        for severity in SEVERITIES:
            made = degrade(clean, {'noise': severity}, seed=seed, parameters=parameters(kind, seed))
            true = made.parameters['noise']['sigma']
            for form, photo in (('as computed', made.image), ('JPEG 90', as_jpeg(made.image))):
                if form != 'as computed' and kind != 'gaussian': continue
                stated = reasoner.diagnose([photo])[0].findings.get('noise')
                found = measure_noise(photo)
                yield dict(name=source.name, form=form, type=kind, severity=severity, true=round(true, 2),
                           stated_type=stated and stated.parameters.get('type'), stated=stated and stated.parameters.get('sigma'),
                           measured_type=found and found['type'], measured=found and round(found['sigma'], 2))

def rain_records(restorer, source):
    "Skewness of what is taken away as noise, with rain of several severities behind it."
    clean, seed = read_photo(source.path).image, source.index
    for severity in SEVERITIES:
        for rain in RAIN:
            made = degrade(clean, {'noise': severity} | ({'rain': rain} if rain else {}), seed=seed, parameters=parameters('gaussian', seed))
            noise = Diagnosis({'noise': Finding(severity, {'type': 'gaussian', 'sigma': made.parameters['noise']['sigma']})})
            skewness = streak_skewness(made.image - restorer.denoise(made.image, noise))
            yield dict(name=source.name, form='rain', severity=severity, rain=rain, skewness=skewness and round(skewness, 4))

def report(rows):
    for form, kind in (('as computed', 'gaussian'), ('as computed', 'poisson'), ('as computed', 'camera'), ('JPEG 90', 'gaussian')):
        for severity in SEVERITIES:
            found = [r for r in rows if r['form'] == form and r.get('type') == kind and r['severity'] == severity]
            def line(key):
                ratios = [r[key] / r['true'] for r in found if r[key]]
                right = sum(r[f'{key}_type'] == kind for r in found)
                if not ratios: return f'{key} in none'
                error = np.mean([abs(math.log(x)) for x in ratios])
                return f'{key} in {len(ratios)}, {np.median(ratios):.2f} of the true level, mean error {100 * error:.0f}%, type right in {right}'
            print(f'{form}, {kind} noise {severity}, {len(found)} photos: {line("stated")}; {line("measured")}')
    for severity in SEVERITIES:
        for rain in RAIN:
            found = [r['skewness'] for r in rows if r['form'] == 'rain' and r['severity'] == severity and r['rain'] == rain and r['skewness'] is not None]
            print(f'noise {severity}, rain {rain}: median skewness {np.median(found):.2f}, above {STREAKS} in {sum(s > STREAKS for s in found)} of {len(found)}')

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--every', type=int, default=1, help='every so many photos')
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo and damage')
    a = p.parse_args()
    reasoner, restorer = Reasoner.from_pretrained(), NanoRestorer.from_pretrained()
    sources = evaluation_photos(a.photos, None)[::a.every]
    rows = [r for s in sources for r in [*noise_records(reasoner, s), *rain_records(restorer, s)]]
    with atomic_path(a.out, overwrite=True) as file: file.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    report(rows)

if __name__ == '__main__': main()
