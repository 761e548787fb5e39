"Packaging of `rr`: every fact about the distribution is read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ini = ConfigParser()
ini.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = ini['DEFAULT']

setup(
    name=cfg['name'],
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'],
    author=cfg['author'],
    license=cfg['license'],
    license_files=['LICENSE'],
    url=cfg['repository'],
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires=f'>={cfg["min_python"]}',
    packages=find_packages(include=['rr', 'rr.*']),
    package_data={'rr': ['assets/**/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': (cfg['dev_requirements'] + ' ' + cfg['docs_requirements']).split(), 'docs': cfg['docs_requirements'].split(), 'trl': cfg['trl_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': ['rr=rr._modidx:d']},
)
