"The site is built from the repository by one command, and no link in it is broken."
import subprocess
import sys

import pytest

from conftest import ROOT

pytest.importorskip('mkdocs')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')
    done = subprocess.run([sys.executable, ROOT / 'docs/make_site.py', out], capture_output=True, text=True, timeout=600)
    return out, done


def test_site_builds_without_a_broken_link(site):
    out, done = site
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-500:]
    assert not (ROOT / 'site').exists()


def test_every_notebook_and_every_module_has_a_page(site):
    out, _ = site
    notebooks = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and p.name != 'index.ipynb']
    missing = [p.name for p in notebooks if not (out / p.relative_to(ROOT / 'nbs')).with_suffix('.html').exists()]
    assert not missing and len(notebooks) > 15
    modules = [p.stem for p in (ROOT / 'rr').glob('*.py') if not p.name.startswith('_')]
    assert [m for m in modules if not (out / f'api/{m}.html').exists()] == []


def test_reference_says_what_the_parameters_are(site):
    page = (site[0] / 'api/degrade.html').read_text(encoding='utf-8')
    assert 'id="degrade"' in page and 'decides every random draw' in page and 'Damage a photo with several kinds' in page


def test_a_broken_link_is_found(site, tmp_path):
    sys.path.insert(0, str(ROOT / 'docs'))
    try: from make_site import broken_links
    finally: sys.path.pop(0)
    (tmp_path / 'a.html').write_text('<a href="b.html#x">b</a> <a href="https://example.com/c">c</a> <img src="d.png">')
    (tmp_path / 'b.html').write_text('<a href="a.html">a</a>')
    assert broken_links(tmp_path) == ['a.html: d.png']
