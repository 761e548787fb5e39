"Installing and importing: fast, light, and with everything inside."

import configparser
import re
import shutil
import tomllib
import zipfile

import pytest

from conftest import ROOT, python, tracked_files

IMPORT = """
import sys, time
start = time.perf_counter()
import rr
print(time.perf_counter() - start)
print(*sorted({name.partition('.')[0] for name in sys.modules}))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built from the tracked files alone, offline."
    folder = tmp_path_factory.mktemp('wheel')
    for path in tracked_files():
        target = folder / 'source' / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    built = python(
        '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'source'
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return zipfile.ZipFile(next(folder.glob('reason_restore-*.whl')))


def test_import_is_fast_and_pulls_in_no_torch():
    runs = [python('-c', IMPORT) for _ in range(3)]
    seconds = min(float(r.stdout.splitlines()[0]) for r in runs)
    assert seconds < 0.3
    loaded = set(runs[0].stdout.splitlines()[1].split())
    assert not loaded & {
        'torch',
        'numpy',
        'transformers',
        'diffusers',
        'matplotlib',
        'PIL',
        'nbdev',
        'IPython',
    }


def test_help_needs_no_torch():
    done = python(
        '-c',
        "import sys, rr.cli\ntry: rr.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)",
    )
    assert done.stdout.splitlines()[-1] == 'False', done.stderr


def test_every_public_name_is_there():
    import rr

    missing = [name for name in rr.__all__ if getattr(rr, name, None) is None]
    assert missing == []
    with pytest.raises(AttributeError, match='no attribute'):
        rr.no_such_name


def test_no_module_needs_the_development_tools():
    "nbdev, jupyter and pytest are in the extra `dev`: nothing in the package may import them."
    block = """
import sys, importlib, pathlib
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'nbdev', 'jupyterlab', 'pytest', 'hypothesis', 'nbconvert', 'playwright'}:
            raise ImportError(f'{name} is a development tool')
sys.meta_path.insert(0, Blocked())
import rr
for path in sorted(pathlib.Path(rr.__file__).parent.glob('*.py')): importlib.import_module(f'rr.{path.stem}')
"""
    done = python('-c', block)
    assert done.returncode == 0, done.stderr[-3000:]


def test_wheel_holds_every_module_and_asset(wheel):
    inside = set(wheel.namelist())
    expected = {p.relative_to(ROOT).as_posix() for p in tracked_files() if p.is_relative_to(ROOT / 'rr')}
    assert expected - inside == set()
    assert 'rr/assets/damaged.jpg' in inside and not any(
        n.startswith(('tests', 'nbs')) for n in inside
    )


def test_wheel_metadata(wheel):
    folder = next(n.partition('/')[0] for n in wheel.namelist() if '.dist-info/' in n)
    text = wheel.read(f'{folder}/METADATA').decode()
    assert re.search(r'^Name: reason-restore$', text, re.M) and re.search(
        r'^License(-Expression)?: Apache-2.0$', text, re.M
    )
    assert 'rr = rr.cli:main' in wheel.read(f'{folder}/entry_points.txt').decode()
    always = [line for line in re.findall(r'^Requires-Dist: (.*)$', text, re.M) if 'extra ==' not in line]
    assert not [line for line in always if line.startswith(('nbdev', 'jupyter', 'pytest'))]
    assert any(n.endswith('LICENSE') for n in wheel.namelist())


def test_requirements_are_floors_and_no_pins():
    settings = configparser.ConfigParser()
    settings.read(ROOT / 'settings.ini')
    listed = settings['DEFAULT']['requirements'].split() + settings['DEFAULT']['dev_requirements'].split()
    assert [line for line in listed if not re.fullmatch(r'[A-Za-z0-9_.-]+>=[0-9.]+', line)] == []


def test_pyproject_is_small():
    content = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    assert content.keys() == {'build-system', 'tool'} and content['tool'].keys() == {'nbdev'}


def test_ci_runs_the_command_of_the_readme():
    command = "pip install -e '.[dev]' && python -m pytest tests -n 2 --dist worksteal"
    readme = (ROOT / 'README.md').read_text().splitlines()
    ci = (ROOT / '.ci/run').read_text().splitlines()
    assert command in readme and command in ci
