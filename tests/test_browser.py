"The explorers in a real JupyterLab, driven by a real browser: a key moves a slider, and the picture on the page changes."
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no Chromium on this machine')
SHOTS = os.environ.get('RR_SCREENSHOTS')  # a folder: keep a picture of every explorer there

START = '''
import torch
from rr.core import bundled_photos, to_tensor
from rr.data import PairStream, Recipe
from rr.degrade import degrade
from rr.diagnosis import Diagnosis
from rr.pipeline import ReasonRestore
from rr.rl import GRPO, GRPOConfig, GaussianFlow
from rr.widgets import *
photo = to_tensor(bundled_photos()['cat'])
made = degrade(shrink(photo, 128), {'fog': 40, 'noise': 40}, seed=1)
truth, pipe = Diagnosis.from_degraded(made), ReasonRestore.from_pretrained()
'''
CELLS = {
    'severity': "SeverityExplorer(photo, {'fog': 30}, longest=128)",
    'trace': 'TraceViewer(truth)',
    'what-if': 'WhatIf(made.image, pipe, longest=96)',
    'scrubber': 'StepScrubber(made.image, truth, pipe.restorer, steps=3, longest=96)',
    'compare': 'Compare(made.image, shrink(photo, 128))',
    'browser': 'DatasetBrowser(PairStream(list(bundled_photos().values()), 96, Recipe(), seed=1), n=20)',
    'group': 'GroupViewer(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), [1., 2., 3., 4.])',
    'monitor': '''trainer = GRPO(GaussianFlow(torch.nn.Parameter(torch.zeros(3, 4, 4)), .1), lambda before, after, clean=None: -after.mean((1, 2, 3)), GRPOConfig(group=4))
monitor = RLMonitor(trainer)
for _ in range(3): trainer.update([torch.zeros(3, 4, 4)], [Diagnosis()])
monitor'''}


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on a free port, with a notebook of one cell for each explorer."
    pytest.importorskip('jupyterlab')
    folder = tmp_path_factory.mktemp('lab')
    cells = [nbformat.v4.new_code_cell(source) for source in (START, *CELLS.values())]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}),
                   folder / 'explorers.ipynb')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    environment = dict(os.environ, JUPYTER_CONFIG_DIR=str(folder / 'config'), JUPYTER_DATA_DIR=str(folder / 'data'), JUPYTER_RUNTIME_DIR=str(folder / 'run'),
                       HF_HUB_OFFLINE='1', PYTHONPATH=os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH')])))
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=',
               f'--ServerApp.root_dir={folder}', '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate']
    with open(folder / 'lab.log', 'wb') as log: server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        deadline = time.monotonic() + 90
        while True:
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status', timeout=2); break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline: raise RuntimeError((folder / 'lab.log').read_text()[-2000:])
                time.sleep(.3)
        yield f'http://127.0.0.1:{port}/doc/tree/explorers.ipynb'
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


def run_all(page, too_late):
    "Run all cells; again if nothing begins, for on a busy machine the kernel may not have been there yet."
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(state='attached')
    for _ in range(4):
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        begun = page.locator('.jp-CodeCell').first.locator('.jp-InputPrompt', has_text=re.compile(r'\[[*\d]'))
        try: return begun.wait_for(timeout=20_000)
        except too_late: page.keyboard.press('Escape')
    raise RuntimeError('no cell began to run')


@pytest.fixture(scope='module')
def page(lab, tmp_path_factory):
    "The notebook in a browser, all cells run."
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp('profile')), executable_path=CHROMIUM, headless=True,
                                                       args=['--no-sandbox', '--disable-gpu'], viewport={'width': 1100, 'height': 4200})
        page = browser.pages[0]
        page.set_default_timeout(60_000)
        page.goto(lab)
        page.locator('.jp-Notebook .jp-CodeCell').nth(len(CELLS)).wait_for()
        run_all(page, playwright.TimeoutError)
        page.locator('.jp-CodeCell').nth(len(CELLS)).locator('img').first.wait_for(timeout=240_000)
        yield page
        browser.close()


def cell(page, name): return page.locator('.jp-CodeCell').nth(1 + list(CELLS).index(name))

def pictures(where): return where.locator('img').evaluate_all('images => images.map(i => i.src)')

def slider(where, name): return where.locator('.widget-inline-hbox', has=where.page.locator('.widget-label', has_text=name)).locator('.noUi-handle').first

def changed(where, before, seconds=60):
    "Wait until another picture is shown; True if one is."
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if pictures(where) != before: return True
        time.sleep(.1)
    return False

def press(handle, key, times=1):
    handle.focus()
    for _ in range(times): handle.press(key)


def shoot(page, name):
    if SHOTS: cell(page, name).screenshot(path=str(Path(SHOTS) / f'{name}.png'))


@pytest.mark.parametrize('name,label,key', [('severity', 'noise', 'PageUp'), ('what-if', 'noise', 'PageDown'), ('scrubber', 'step', 'ArrowRight'),
                                            ('compare', 'curtain', 'ArrowLeft'), ('group', 'differences', 'PageUp')])
def test_a_key_on_a_slider_changes_the_picture(page, name, label, key):
    where = cell(page, name)
    where.scroll_into_view_if_needed()
    before = pictures(where)
    assert before
    press(slider(where, label), key, 3)
    assert changed(where, before), f'{name}: the picture did not follow its slider'
    shoot(page, name)


def test_the_trace_unfolds(page):
    where = cell(page, 'trace')
    opened = lambda: where.locator('details[open]').count()
    before = opened()
    press(slider(where, 'stages'), 'ArrowRight', 2)
    deadline = time.monotonic() + 30
    while opened() != before + 2 and time.monotonic() < deadline: time.sleep(.1)
    assert opened() == before + 2
    shoot(page, 'trace')


def test_the_browser_goes_on_to_the_next_pair(page):
    where = cell(page, 'browser')
    before = pictures(where)
    where.get_by_role('button', name='next').click()
    assert changed(where, before) and len(pictures(where)) == 2
    shoot(page, 'browser')


def test_the_monitor_shows_its_curves(page):
    where = cell(page, 'monitor')
    assert len(pictures(where)) == 1 and '3 updates' in where.inner_text()
    shoot(page, 'monitor')


def test_every_image_has_a_description_and_no_cell_failed(page):
    alts = page.locator('.jp-OutputArea img').evaluate_all('images => images.map(i => i.alt)')
    assert len(alts) >= 12 and all(alts)
    assert page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]').count() == 0


def test_sliders_are_reached_with_the_tab_key(page):
    handle = slider(cell(page, 'severity'), 'fog')
    assert handle.get_attribute('tabindex') == '0' and handle.get_attribute('role') == 'slider'
