#!/bin/sh
# Makes .venv-breaching in the current folder, the repository's root: the peer and the PyTorch that .venv has.
set -eu
torch=$(.venv/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')
uv venv --quiet --allow-existing --python .venv/bin/python .venv-breaching
VIRTUAL_ENV=.venv-breaching uv pip install --quiet 'breaching==0.1.2' "torch==$torch" torchvision
