"""The mean of the weights of several training runs of one network: python docs/mean_weights.py A/weights B/weights --out MEAN

Each folder holds `model.safetensors` of the same tensors; configuration and tokenizer are taken from the last one. The mean is
formed in float32 and stored in the type of the last one."""

import argparse, shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rr.core import atomic_path


def mean(tables: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    "Tensor by tensor; ValueError when the networks differ."
    shapes = [{k: t.shape for k, t in table.items()} for table in tables]
    if any(s != shapes[0] for s in shapes[1:]):
        raise ValueError('these are weights of different networks: names or shapes of their tensors differ')
    last = tables[-1]
    return {k: torch.stack([t[k].float() for t in tables]).mean(0).to(last[k].dtype) for k in last}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('folders', type=Path, nargs='+', help='each with model.safetensors')
    p.add_argument('--out', type=Path, required=True, help='new folder')
    a = p.parse_args()
    weights = mean([load_file(folder / 'model.safetensors') for folder in a.folders])
    shutil.copytree(a.folders[-1], a.out, ignore=shutil.ignore_patterns('model.safetensors'))
    with atomic_path(a.out / 'model.safetensors') as path:
        save_file(weights, path, metadata={'format': 'pt'})


if __name__ == '__main__':
    main()
