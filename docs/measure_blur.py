"""What measuring the kernel of a blur is worth: python docs/measure_blur.py Kodak24 McMaster --out docs/measured/blur.jsonl

Each photo is blurred as in `rr evaluate` (condition blur, seed 0) and handed over as it is computed, rounded to 8 bits, and as JPEG of quality 90. Beside the width that the photo's spectrum shows stands
the width that the reasoner states; both restorations are compared with the clean photo."""
import argparse, io, json, math, statistics
from pathlib import Path

from PIL import Image

from rr.core import atomic_path, psnr, to_pil, to_tensor
from rr.evaluate import CONDITIONS, condition_pair, evaluation_photos
from rr.pipeline import ReasonRestore

def as_jpeg(image, quality=90):
    file = io.BytesIO()
    to_pil(image).save(file, 'JPEG', quality=quality)
    return to_tensor(Image.open(file).convert('RGB'))

FORMS = {'as computed': lambda image: image, '8 bits': lambda image: (image * 255).round() / 255, 'JPEG 90': as_jpeg}

def record(pipeline, pair, form):
    "Widths and gains of one photo in one form; the width is None where no blur is found."
    photo = FORMS[form](pair.degraded.clamp(0, 1))
    stated = pipeline.reasoner.reply([photo])[0].diagnosis
    told = pipeline.told(photo, stated)
    width = lambda d: d.findings['blur'].parameters.get('sigma') if 'blur' in d.findings else None
    gain = lambda d: round(float(psnr(pipeline.restorer.restore([photo], [d])[0], pair.clean) - psnr(photo, pair.clean)), 3)
    return dict(name=pair.name, form=form, true=pair.diagnosis.findings['blur'].parameters['sigma'], stated=width(stated), measured=width(told),
                changed=told != stated, gain_stated=gain(stated), gain_measured=gain(told))

def summary(rows) -> str:
    "Typical widths as a share of the true one, median error of the width, and mean gains in dB."
    ratios = lambda key: [r[key] / r['true'] for r in rows if r[key]]
    error = lambda key: statistics.median(abs(math.log(x)) for x in ratios(key))
    mean = lambda key: sum(r[key] for r in rows) / len(rows)
    return (f'{rows[0]["form"]}, {len(rows)} photos, measured in {sum(r["changed"] for r in rows)}: median width {statistics.median(ratios("stated")):.2f} of the true one as stated, '
            f'{statistics.median(ratios("measured")):.2f} as measured; median error {100 * error("stated"):.0f}% and {100 * error("measured"):.0f}%; '
            f'gain {mean("gain_stated"):+.2f} dB as stated, {mean("gain_measured"):+.2f} dB as measured, above 0 in {sum(r["gain_stated"] > 0 for r in rows)} and {sum(r["gain_measured"] > 0 for r in rows)}')

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('photos', type=Path, nargs='+', help='folders of clean photos')
    p.add_argument('--out', type=Path, required=True, help='records, one line a photo and form')
    a = p.parse_args()
    pipeline, rows = ReasonRestore.from_pretrained(), []
    for source in evaluation_photos(a.photos):
        pair = condition_pair(source, CONDITIONS['blur'])
        rows += [record(pipeline, pair, form) for form in FORMS]
    with atomic_path(a.out, overwrite=True) as file: file.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    for form in FORMS: print(summary([r for r in rows if r['form'] == form]))

if __name__ == '__main__': main()
