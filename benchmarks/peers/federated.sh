#!/bin/sh
# Makes .venv-pfl and .venv-flower in the current folder, the repository's root: the peers of benchmarks.fl_speed, each with
# the PyTorch that .venv has. Flower pins Ray, so it cannot live beside ours.
set -eu
torch=$(.venv/bin/python -c 'import torch; print(torch.__version__.split("+")[0])')
for peer in pfl=pfl==0.6.0 flower='flwr[simulation]==1.41.0'; do
    environment=.venv-${peer%%=*}
    .venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python "$environment"
    VIRTUAL_ENV=$environment .venv/bin/uv pip install --quiet "${peer#*=}" "torch==$torch" numpy
done
