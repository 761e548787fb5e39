"The notebooks run, are clean, and are what the package and the README are made from."

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from conftest import ROOT, python, tracked_files

NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
STABLE = ('00_core', '01_degrade', '02_severity', '03_diagnosis', '05_data', 'tour_of_degradations', 'paper_to_code')  # no network, no training: they say the same in every run
SKIPPED_FLAGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['nbdev']['tst_flags'].split()
RUN = """
import sys
from nbdev.test import test_nb
notebook, root, *flags = sys.argv[1:]
passed, seconds = test_nb(notebook, skip_flags=flags, basepath=root)
print(f'{seconds:.0f} s')
sys.exit(not passed)
"""


@pytest.fixture
def copied(tmp_path):
    "A copy of the notebooks and of what nbdev needs beside them."
    shutil.copytree(ROOT / 'nbs', tmp_path / 'nbs', ignore=shutil.ignore_patterns('.*'))
    shutil.copy(ROOT / 'pyproject.toml', tmp_path)
    (tmp_path / 'rr').mkdir()
    shutil.copy(ROOT / 'rr/__init__.py', tmp_path / 'rr')
    return tmp_path


def test_notebooks_are_numbered_without_gaps():
    numbers = [int(p.name[:2]) for p in NOTEBOOKS if p.name[:2].isdigit()]
    assert len(numbers) > 5 and len(numbers) == len(set(numbers)) and numbers[0] == 0


@pytest.mark.parametrize('notebook', [p for p in NOTEBOOKS if p.stem not in STABLE], ids=lambda p: p.stem)
def test_notebook_runs_offline_on_the_cpu(notebook):
    done = python(
        '-c', RUN, notebook, ROOT, *SKIPPED_FLAGS, cwd=ROOT, HF_HUB_OFFLINE='1', CUDA_VISIBLE_DEVICES=''
    )
    assert done.returncode == 0, done.stderr[-6000:] + done.stdout[-1000:]


def test_package_is_what_the_notebooks_export(copied):
    exported = python('-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=copied)
    assert exported.returncode == 0, exported.stderr
    made = {p.name: p.read_text() for p in (copied / 'rr').glob('*.py')}
    here = {p.name: p.read_text() for p in (ROOT / 'rr').glob('*.py')}
    assert made.keys() == here.keys()
    assert [n for n in made if made[n] != here[n]] == [], 'run nbdev-export'


def test_notebooks_are_clean(copied):
    cleaned = python('-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()', cwd=copied)
    assert cleaned.returncode == 0, cleaned.stderr
    dirty = [p.name for p in NOTEBOOKS if (copied / p.relative_to(ROOT)).read_bytes() != p.read_bytes()]
    assert dirty == [], 'run nbdev-clean'


def test_notebooks_hold_real_output_and_no_error():
    import nbformat

    for path in NOTEBOOKS:
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
        outputs = [o for c in cells for o in c.outputs]
        assert not [o for o in outputs if o.output_type == 'error'], path.name
        assert any('image/png' in o.get('data', {}) or 'text/html' in o.get('data', {}) for o in outputs), (
            path.name
        )


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_reader_sees_every_line_of_code_whole(notebook):
    "A page shows about 110 columns; what is longer is cut off, or has to be scrolled."
    cells = [c for c in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    long = [f"{c['id']}: {line[:60]}..." for c in cells for line in ''.join(c['source']).splitlines() if len(line) > 110]
    assert not long, long


def is_show_images(source):
    "Whether the last statement of a cell is a call of `show_images`, with or without a semicolon."
    body = ast.parse('\n'.join(line for line in source.splitlines() if line[:1] not in '!%')).body
    call = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    return isinstance(call, ast.Call) and 'show_images' in (getattr(call.func, 'id', ''), getattr(call.func, 'attr', ''))


def test_pictures_that_are_made_are_shown():
    "`show_images` returns a closed figure: after a semicolon nothing would be seen."
    found = 0
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if cell['cell_type'] != 'code' or 'show_images' not in source or not is_show_images(source): continue
            kinds, found = {kind for o in cell['outputs'] for kind in o.get('data', {})}, found + 1
            assert kinds & {'image/png', 'image/jpeg'}, f"{notebook.name}, {cell['id']}: no picture"
    assert found > 50 and is_show_images('x = 1\nrr.show_images(\n  [x]);') and not is_show_images('a = show_images([x])')


def test_every_picture_says_what_it_shows():
    "Alternative text, for those who do not see it: figures bring it themselves (`rr.core.figure_text`)."
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
            for output in cell.get('outputs', ()):
                for form in {'image/png', 'image/jpeg'} & set(output.get('data', {})):
                    alt = output['metadata'].get(form, {}).get('alt', '')
                    assert len(alt) > 5, f"{notebook.name}, {cell['id']}: a picture without alternative text; run it again"


CHANGES = re.compile(r'time|seconds|speed|memory|[Tt]emp|seed\(\)|%')  # in a cell whose text may differ from run to run
NUMBER = re.compile(r'[-+]?\d*\.?\d+(?:e[-+]?\d+)?')


def texts(notebook):
    "What the cells of a notebook say in plain text, by source."
    cells = [c for c in notebook.cells if c.cell_type == 'code' and not CHANGES.search(c.source)]
    said = lambda o: o.get('text') or o.get('data', {}).get('text/plain', '')
    plain = lambda text: re.sub(r'<.*?>|0x[0-9a-f]+', '', text)
    return [(c.source, plain(''.join(said(o) for o in c.outputs if o.get('name') != 'stderr'))) for c in cells]


@pytest.mark.parametrize('name', STABLE)
def test_notebook_runs_and_says_what_is_stored(name, monkeypatch):
    "Words must be equal, numbers within a thousandth."
    import nbformat
    from nbclient import NotebookClient

    path = next(p for p in NOTEBOOKS if p.stem == name)
    stored, again = (nbformat.read(path, 4) for _ in range(2))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    NotebookClient(again, timeout=300, resources={'metadata': {'path': str(path.parent)}}).execute()
    stale = []
    for (source, was), (_, now) in zip(texts(stored), texts(again), strict=True):
        close = all(float(a) == pytest.approx(float(b), rel=1e-3, abs=1e-3) for a, b in zip(NUMBER.findall(was), NUMBER.findall(now)))
        if NUMBER.sub('#', was) != NUMBER.sub('#', now) or not close: stale.append(f'{source[:80]!r}: {was[:200]!r} is now {now[:200]!r}')
    assert stale == [], f'run {path.name} again and keep its output'


def test_the_heads_say_what_was_measured():
    import nbformat

    sys.path.insert(0, str(ROOT / 'docs'))
    import measure_notebooks as m

    measured = {r['notebook']: r for r in map(json.loads, m.RECORDS.read_text().splitlines())}
    assert set(measured) == {p.stem for p in NOTEBOOKS}
    for path in NOTEBOOKS:
        rows = m.ROW.findall(nbformat.read(path, 4).cells[0].source)
        assert rows == ([] if path.stem == 'index' else [m.said(measured[path.stem])]), path.name


def test_readme_is_the_index_notebook():
    done = subprocess.run(
        [sys.executable, ROOT / 'docs/make_readme.py', '--check'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_version():
    import rr

    settings = configparser.ConfigParser()
    settings.read(ROOT / 'settings.ini')
    versions = {settings['DEFAULT']['version'], rr.__version__, metadata.version('reason-restore')}
    assert len(versions) == 1, versions


def test_no_machine_path_and_no_registry_host():
    "Paths of the machine that a file was made on, and hosts to install from, have no place in the project."
    parts = [
        r'/wor' + r'k/',
        r'/roo' + r't/',
        r'/hom' + r'e/\w',
        r'/far' + r'm/',
        'ipykernel' + r'_\d',
        r'pypi\.' + 'org',
        'python' + 'hosted',
        'npmjs' + r'\.',
        'extra-' + 'index',
        'find-' + 'links',
        r'debian\.' + 'org',
    ]
    forbidden = re.compile('|'.join(parts))
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding='utf-8')
        except UnicodeDecodeError:
            continue
        found += [f'{path.relative_to(ROOT)}: {m.group()}' for m in forbidden.finditer(text)]
    assert found == []
