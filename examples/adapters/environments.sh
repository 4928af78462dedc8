#!/bin/sh
# Makes .venv-flower-adapter, .venv-nvflare-adapter, or those that are named (flower, nvflare), in the current folder, the
# repository's root. These frameworks want other versions of Ray and protobuf than fedveil, so each gets an environment of
# its own; after its own packages it finds those of .venv, PyTorch and fedveil among them, so that nothing large is there
# twice.
set -eu
ours=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for peer in ${*:-flower nvflare}; do
    case $peer in
        flower) package='flwr[simulation]==1.42.0' ;;
        nvflare) package='nvflare==2.9.0' ;;
        *) echo "no environment is known for $peer; known are flower and nvflare" >&2 && exit 2 ;;
    esac
    environment=.venv-$peer-adapter
    .venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python "$environment"
    VIRTUAL_ENV=$environment .venv/bin/uv pip install --quiet "$package"
    packages=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$PWD" "$ours" > "$packages/fedveil-host.pth"
done
