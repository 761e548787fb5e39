"""Time and memory of each notebook: python docs/measure_notebooks.py [NAME ...] [--write]

Runs each notebook from top to bottom in a process of its own, without a GPU, and keeps the seconds and the highest memory of that process and its children in docs/measured/notebooks.jsonl. With --write the notebook
keeps the new outputs, and the table at its head says what was measured (then run nbdev-clean); without names all notebooks are run. Run it on a machine that does nothing else: the figures are of two cores."""
import argparse, json, os, re, subprocess, sys, tempfile, threading, time
from pathlib import Path

import nbformat, psutil

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT/'docs/measured/notebooks.jsonl'
ROW = re.compile(r'^\| 2 CPU cores \|.*$', re.M)
RUN = '''
import sys, nbformat
from nbclient import NotebookClient
source, folder, out = sys.argv[1:]
notebook = nbformat.read(source, 4)
NotebookClient(notebook, timeout=1800, resources={'metadata': {'path': folder}}).execute()
for cell in notebook.cells: cell.metadata.pop('execution', None)
nbformat.write(notebook, out)
'''

def watch(process, peak:list):
    "Keep the highest memory of a process and its children, in bytes; shared pages are counted once (PSS)."
    while process.poll() is None:
        try: family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        except psutil.NoSuchProcess: return
        held = 0
        for member in family:
            try: held += member.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied): pass
        peak[0] = max(peak[0], held)
        time.sleep(.5)

def run(path:Path, out:Path) -> dict:
    "Seconds and peak memory of one notebook; `out` gets it with its new outputs."
    began, peak = time.perf_counter(), [0]
    process = subprocess.Popen([sys.executable, '-c', RUN, str(path), str(path.parent), str(out)], env=os.environ | dict(CUDA_VISIBLE_DEVICES='', HF_HUB_OFFLINE='1', PYTHONPATH=str(ROOT)))
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    if process.wait(): raise SystemExit(f'{path.name} does not run')
    watcher.join()
    return dict(notebook=path.stem, seconds=round(time.perf_counter() - began), gigabytes=round(peak[0] / 1e9, 2), cores=len(os.sched_getaffinity(0)))

def said(record:dict) -> str:
    seconds = record['seconds']
    length = f'{seconds} s' if seconds < 100 else f'{seconds / 60:.1f} min'
    return f'| 2 CPU cores | {length} | {record["gigabytes"]:.1f} GB | measured |'

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('names', nargs='*', help='of notebooks; default: all')
    p.add_argument('--write', action='store_true', help='keep the outputs, and the figures at the heads of the notebooks')
    a = p.parse_args()
    notebooks = [path for path in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in path.parts and (not a.names or path.stem in a.names)]
    known = {r['notebook']: r for r in map(json.loads, RECORDS.read_text().splitlines())} if RECORDS.exists() else {}
    for path in notebooks:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)/path.name
            known[path.stem] = run(path, out)
            print(json.dumps(known[path.stem]), flush=True)
            RECORDS.write_text(''.join(json.dumps(r) + '\n' for r in sorted(known.values(), key=lambda r: r['notebook'])))
            if not a.write: continue
            notebook = nbformat.read(out, 4)
            notebook.cells[0].source = ROW.sub(said(known[path.stem]), notebook.cells[0].source, count=1)
            nbformat.write(notebook, path)

if __name__ == '__main__': main()
