"""Measure again what hangs on weights that changed: python docs/measure_all.py DATA OUT --changed reasoner --exclude not-clean.tsv

The records in docs/measured that a change of these weights makes stale are measured into the folder OUT, the longest first,
one process of one thread on each core; a run that was stopped goes on where it was. Left out are those whose table says that they
were measured with earlier weights, and peers, which wants weights of others. Then `--merge` puts what is complete into
docs/measured, where rows of weights that this package does not hold stay, and `python docs/record.py` what notebooks read of it
into the package. DATA holds clean photos in dev/Kodak24 and dev/McMaster, those that were trained on in train/bsds and
train/free, and the benchmarks in bench/CBSD68, bench/SOTS-indoor-10/hazy and clear, bench/Rain100H-30/rain and clean, and
bench/PolyU-50/noisy and clean. Each record names its command in docs/measured/README.md."""

import argparse, json, os, shlex, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

HERE = Path(__file__).parent
MEASURED = HERE / 'measured'
DEV = ('{dev}/Kodak24', '{dev}/McMaster')
TRAINED = ('{train}/bsds', '{train}/free')
TWO = "['{dev}/Kodak24', '{dev}/McMaster'], seed=0, out='{out}'"  # of `evaluate`
SEVEN = "('clean', 'mixed', 'all kinds', 'fog', 'rain', 'blur', 'noise 25')"
SOTS = ('SOTS', '{bench}/SOTS-indoor-10/hazy', '{bench}/SOTS-indoor-10/clear')
RAIN = ('Rain100H', '{bench}/Rain100H-30/rain', '{bench}/Rain100H-30/clean')
POLYU = ('PolyU', '{bench}/PolyU-50/noisy', '{bench}/PolyU-50/clean')
LOOP = 'reasoner restorer denoiser'  # whatever the whole pipeline does


class Job(NamedTuple):
    record: str  # without its ending
    hangs_on: str  # weights, in one string
    minutes: int  # on one slow core, about
    command: tuple  # what python is to run; {out} is the record


def evaluation(sections: str, more: str = '') -> tuple:
    return '-c', f"from rr.evaluate import evaluate; evaluate({TWO}, sections=('{sections}',){more})"


JOBS = (
    Job('benchmarks', LOOP, 55, ('measure_benchmarks', '--noise', '{bench}/CBSD68', '--pairs', *SOTS, '--pairs', *RAIN, '--pairs', *POLYU)),
    Job('places', LOOP + ' adapter', 55, ('measure_places', *DEV, '--threads', '1')),
    Job('dev_restorer', LOOP, 35, evaluation('restorer', f', conditions={SEVEN}')),
    Job('thresholds_restored', LOOP, 16, ('measure_thresholds', *TRAINED, '--every', '24', '--restore', '{exclude}')),
    Job('noise', 'reasoner denoiser', 12, ('measure_noise', *DEV, '--every', '3')),
    Job('transfer_measured', 'reasoner denoiser', 12, ('measure_transfer', *DEV, '--measured')),
    Job('doubt', LOOP, 11, ('measure_doubt', *DEV)),
    Job('seven', 'reasoner adapter', 10, ('measure_seven', *DEV, '--reasoners', 'nano', 'nano-seven', '--threads', '1')),
    Job('blur', LOOP, 8, ('measure_blur', *DEV)),
    Job('thresholds', 'reasoner', 7, ('measure_thresholds', *TRAINED, '--every', '6', '{exclude}')),
    Job('trained_on', 'reasoner', 6, ('-m', 'rr.cli', 'evaluate', '{train}/bsds', '--limit', '84', '--sections', 'reasoner')),
    Job('dev_reasoner', 'reasoner', 5, evaluation('reasoner')),
    Job('doubt_polyu', LOOP, 5, ('measure_benchmarks', '--pairs', *POLYU, '--in-doubt', '1')),
    Job('transfer', 'reasoner', 4, ('measure_transfer', *DEV, '--twins', 'fog', *SOTS[1:], '--twins', 'noise', *POLYU[1:])),
    Job('noise_alone', 'restorer denoiser', 8, ('measure_noise_alone', *DEV, '--every', '3')),
    Job('thresholds_dev', 'reasoner', 4, ('measure_thresholds', *DEV)),
    Job('stored', 'reasoner', 3, ('measure_stored', *DEV, '--threads', '1')),
    Job('sizes', 'reasoner', 2, ('measure_sizes', *DEV, '--threads', '1')),
)


def words_of(job: Job, data: Path, out: Path, exclude: list[Path]) -> list[str]:
    "The command, with folders for their names."
    places = dict(dev=data / 'dev', train=data / 'train', bench=data / 'bench', out=out / f'{job.record}.jsonl')
    first, *rest = job.command
    script = [first] if first.startswith('-') else [str(HERE / f'{first}.py')]
    left_out = ['--exclude', *map(str, exclude)] if exclude else []
    words = [w for word in rest for w in (left_out if word == '{exclude}' else [word.format(**places)])]
    return script + words + ([] if first == '-c' else ['--out', str(places['out'])])


def measure(job: Job, words: list[str], out: Path, core: int | None) -> bool:
    "Run a command on one core, unless what it prints is there already; whether it came to its end."
    printed = out / f'{job.record}.txt'
    if printed.exists():
        return True
    began, part = time.time(), printed.with_suffix('.part')
    with open(part, 'w') as file:
        run = subprocess.Popen([sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env=os.environ | dict(OMP_NUM_THREADS='1'))
        if core is not None:
            os.sched_setaffinity(run.pid, {core})
        code = run.wait()
    if code == 0:
        part.rename(printed)
    print(f'{job.record}: {"done" if code == 0 else f"failed, see {part}"}, {(time.time() - began) / 60:.0f} minutes', flush=True)
    return code == 0


def merged(old: list[dict], new: list[dict]) -> list[dict]:
    "The new rows; of records of several reasoners, those of others than the new ones stay where they were."
    names = dict.fromkeys(r['reasoner'] for r in old + new if 'reasoner' in r)
    again = {r.get('reasoner') for r in new}
    if not names:
        return new
    return [r for name in names for r in (new if name in again else old) if r['reasoner'] == name]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('data', type=Path, help='folder of photos and benchmarks')
    p.add_argument('out', type=Path, help='folder for records, and what the commands print')
    p.add_argument('--changed', nargs='+', required=True, choices=('reasoner', 'adapter', 'restorer', 'denoiser'))
    p.add_argument('--only', nargs='+', choices=[j.record for j in JOBS], metavar='RECORD', help='of the stale records these')
    p.add_argument('--exclude', type=Path, nargs='+', default=[], help='training photos that are not clean, or tables of them')
    p.add_argument('--list', action='store_true', help='print the commands, and run none')
    p.add_argument('--merge', action='store_true', help='put what is complete into docs/measured, and run nothing')
    a = p.parse_args()
    jobs = [j for j in JOBS if set(a.changed) & set(j.hangs_on.split()) and j.record in (a.only or [j.record])]
    jobs = sorted(jobs, key=lambda j: -j.minutes)
    if a.list:
        for job in jobs:
            print('python', shlex.join(words_of(job, a.data, a.out, a.exclude)))
        return
    if a.merge:
        read = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
        for job in [j for j in jobs if (a.out / f'{j.record}.txt').exists()]:
            rows = merged(read(MEASURED / f'{job.record}.jsonl'), read(a.out / f'{job.record}.jsonl'))
            (MEASURED / f'{job.record}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
            print(f'{job.record}: {len(rows)} rows')
        return
    a.out.mkdir(parents=True, exist_ok=True)
    cores, free = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [None] * os.cpu_count(), SimpleQueue()
    for core in cores:
        free.put(core)

    def next_one(job):
        core = free.get()
        try:
            return measure(job, words_of(job, a.data, a.out, a.exclude), a.out, core)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        if not all(list(pool.map(next_one, jobs))):
            sys.exit(1)


if __name__ == '__main__':
    main()
