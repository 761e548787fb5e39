"Reason and Restore: a damaged photo in; its diagnosis, its chain of thought and a restored photo out."
from importlib import import_module

__version__ = '0.1.0'

_modules = ('core degrade severity diagnosis viz data nano reasoner finetune restorer flow rl pipeline '
            'widgets evaluate cli').split()
_homes = {
    'Photo': 'core', 'PhotoError': 'core', 'read_photo': 'core', 'write_photo': 'core', 'show_images': 'core',
    'bundled_photos': 'core', 'damaged_photo': 'core', 'psnr': 'core',
    'Degraded': 'degrade', 'Diagnosis': 'diagnosis', 'Finding': 'diagnosis', 'Scene': 'diagnosis',
    'parse_cot': 'diagnosis', 'Reasoner': 'reasoner', 'Restorer': 'restorer',
    'ReasonRestore': 'pipeline', 'Restoration': 'pipeline',
}
__all__ = [*_modules, *_homes]


def __getattr__(name):
    "The submodule or public class `name`, imported at its first use, so that `import rr` alone stays fast."
    if name in _modules: return import_module(f'.{name}', __name__)
    if name not in _homes: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(f'.{_homes[name]}', __name__), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})
