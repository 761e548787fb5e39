"""Make a site of all notebooks and the API reference: `python docs/make_site.py [OUT]`; OUT is `site` if it is not given.

Needs the packages of the extra `docs`. A link that leads nowhere, between notebooks or from the API, is an error.
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / 'nbs'
PAGE = """# {module}

{about} Made from [{notebook}]({path}).

{body}
"""


def title(path):
    "The first heading of a notebook."
    first = next(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'markdown')
    return re.search(r'^# (.+)', first, re.M)[1]


def copy_notebook(path, out):
    "Write the notebook without hidden cells and directives, its links as those of the site."
    notebook = nbformat.read(path, 4)
    cells = []
    for cell in notebook.cells:
        lines = cell.source.split('\n')
        if cell.cell_type == 'code':
            directives = {line[2:].strip().split(' ')[0] for line in lines if line.startswith('#|')}
            if directives & {'hide', 'default_exp'}:
                continue
            cell.source = '\n'.join(line for line in lines if not line.startswith('#|')).strip()
        else:
            cell.source = re.sub(r'\]\((?!https?:)([^)]+)\.ipynb\)', r'](\1.html)', cell.source).replace('(index.html)', '(start.html)')
        cells.append(cell)
    notebook.cells = cells
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)


def reference(module):
    "Every public function and class of a module, with its parameters, in Markdown."
    from nbdev.showdoc import show_doc

    pieces = []
    for name in module.__all__:
        value = getattr(module, name)
        if not callable(value) or getattr(value, '__module__', module.__name__) != module.__name__:
            continue
        text = show_doc(value)._repr_markdown_()
        text = re.sub(r'^---\s*', '', text)
        text = re.sub(r'\[source\]\([^)]*\)(\{[^}]*\})?\s*', '', text)
        pieces.append(re.sub(r'^### .*$', f'## {name}', text, count=1, flags=re.M))
    return '\n\n'.join(pieces)


def numbered():
    "Notebooks that make modules, in lesson order, with the module's name."
    found = []
    for path in sorted(NBS.glob('[0-9]*.ipynb')):
        exported = re.search(r'#\| *default_exp (\w+)', path.read_text(encoding='utf-8'))
        found.append((path, exported and exported[1]))
    return found


def write_sources(folder):
    "Everything that mkdocs builds from; returns the navigation."
    for path in [*NBS.glob('*.ipynb'), *NBS.glob('lessons/*.ipynb')]:
        copy_notebook(path, folder / path.relative_to(NBS))
    (folder / 'index.ipynb').rename(folder / 'start.ipynb')
    shutil.copytree(ROOT / 'docs/images', folder / 'docs/images')
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    for kept in set(re.findall(r'\]\(((?:LICENSE|rr/|docs/measured)[^)]*)\)', readme)):
        readme = readme.replace(f']({kept})', f'](https://github.com/reason-restore/reason-restore/blob/main/{kept})')
    (folder / 'index.md').write_text(readme.replace('](nbs/', ']('), encoding='utf-8')
    api, lessons = [], []
    (folder / 'api').mkdir()
    for path, name in numbered():
        if not name:
            continue
        module = importlib.import_module(f'rr.{name}')
        page = PAGE.format(module=f'rr.{name}', about=(module.__doc__ or '').strip(), notebook=path.stem,
                           path=f'../{path.name}', body=reference(module))
        (folder / f'api/{name}.md').write_text(page, encoding='utf-8')
        api.append({f'rr.{name}': f'api/{name}.md'})
    for path in sorted(NBS.glob('lessons/*.ipynb')):
        lessons.append({title(path): f'lessons/{path.name}'})
    modules = [{title(path): path.name} for path, _ in numbered()]
    return [{'Home': 'index.md'}, {'Lessons': lessons}, {'Notebooks': modules}, {'API reference': api}]


def settings(folder, out, navigation):
    "What mkdocs is told."
    return {
        'site_name': 'Reason and Restore', 'docs_dir': str(folder), 'site_dir': str(out), 'nav': navigation, 'use_directory_urls': False,
        'theme': {'name': 'material', 'font': False, 'palette': {'primary': 'blue grey'}, 'features': ['navigation.sections', 'toc.follow']},
        'plugins': ['search', {'mkdocs-jupyter': {'execute': False, 'include_source': False}}],
        'markdown_extensions': ['tables', 'attr_list', 'pymdownx.superfences', {'pymdownx.arithmatex': {'generic': True}}],
        'validation': {'links': {'not_found': 'warn', 'anchors': 'info', 'absolute_links': 'warn', 'unrecognized_links': 'info'}},
    }


def broken_links(out):
    "Links and pictures of the finished pages that lead to no file, as 'page: link'."
    missing = []
    for page in out.rglob('*.html'):
        if page.name == '404.html':
            continue
        for link in re.findall(r'<(?:a|img|script|link)[^>]*?\s(?:href|src)="([^"#?]+)', page.read_text(encoding='utf-8')):
            if re.match(r'[a-z]+:|//', link):
                continue
            if not (page.parent / link).exists():
                missing.append(f'{page.relative_to(out)}: {link}')
    return sorted(set(missing))


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else 'site').absolute()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / 'docs'
        folder.mkdir()
        config = Path(temporary) / 'mkdocs.yml'
        config.write_text(yaml.safe_dump(settings(folder, out, write_sources(folder)), sort_keys=False))
        done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-f', str(config)], cwd=temporary)
    missing = broken_links(out) if done.returncode == 0 else []
    for link in missing:
        print(f'broken link: {link}', file=sys.stderr)
    pages = len(list(out.rglob('*.html'))) if out.exists() else 0
    print(json.dumps({'pages': pages, 'broken': len(missing), 'built': done.returncode == 0}))
    return int(bool(done.returncode or missing))


if __name__ == '__main__':
    sys.exit(main())
