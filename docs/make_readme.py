"""Make README.md and its pictures from nbs/index.ipynb: `python docs/make_readme.py`.

With `--check` nothing is written; the exit code is 1 if the files differ from what the notebook gives.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / 'docs/images'
ALT = 'The damaged photo, the restored one, the original'  # of the only picture


def shown(notebook):
    "The notebook without hidden cells and directives; cells of which only the output shows are tagged."
    cells = []
    for cell in notebook.cells:
        directives = set(re.findall(r'^#\| *(.+)$', cell.source, re.M)) if cell.cell_type == 'code' else set()
        if 'hide' in directives:
            continue
        if cell.cell_type == 'code':
            cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
            if 'echo: false' in directives:
                cell.metadata['tags'] = ['output-only']
        cells.append(cell)
    notebook.cells, notebook.metadata['language_info'] = cells, {'name': 'python'}
    return notebook


def render():
    "(text of README.md, {name of a picture: bytes})"
    config = Config({'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ['output-only']}})
    notebook = shown(nbformat.read(ROOT / 'nbs/index.ipynb', 4))
    resources = {'output_files_dir': 'docs/images', 'unique_key': 'readme'}
    text, resources = MarkdownExporter(config=config).from_notebook_node(notebook, resources)
    text = re.sub(r'\]\(((?:lessons/|\d\d_)\w+\.ipynb)\)', r'](nbs/\1)', text)
    text = text.replace('![png](', f'![{ALT}](')
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return text, {Path(name).name: data for name, data in resources['outputs'].items()}


def main():
    text, pictures = render()
    there = {p.name: p.read_bytes() for p in PICTURES.glob('readme_*')}
    if '--check' in sys.argv[1:]:
        same = (ROOT / 'README.md').read_text(encoding='utf-8') == text and there == pictures
        if not same:
            print(
                'README.md is not what nbs/index.ipynb gives: run python docs/make_readme.py', file=sys.stderr
            )
        return int(not same)
    PICTURES.mkdir(exist_ok=True)
    for name in there.keys() - pictures.keys():
        (PICTURES / name).unlink()
    for name, data in pictures.items():
        (PICTURES / name).write_bytes(data)
    (ROOT / 'README.md').write_text(text, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
