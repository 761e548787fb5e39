"What the tests share: the repository, the command `rr` in a process of its own, and photos of every kind."

import os
import subprocess
import sys
from pathlib import Path

import pytest

if workers := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)):  # side by side: the cores are shared, not fought for
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, os.cpu_count() // workers)))
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def python(*arguments, cwd=None, timeout=600, **environment):
    "Run this Python with `arguments` in a process of its own, with `rr` importable; output captured as text."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | environment
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), env.get('PYTHONPATH')]))
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=env,
        timeout=timeout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def rr_command(*arguments, **options):
    "Run the command `rr`."
    return python('-m', 'rr.cli', *arguments, **options)


def tracked_files():
    "The files under version control that exist."
    listed = subprocess.run(
        ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split('\0') if name and (ROOT / name).is_file()]


@pytest.fixture(scope='session')
def small_photo():
    "A bundled photo at 160x120 as a PIL image."
    from PIL import Image

    from rr.core import bundled_photos

    return Image.open(bundled_photos()['coffee']).convert('RGB').resize((160, 120))
