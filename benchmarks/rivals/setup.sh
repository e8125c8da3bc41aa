#!/usr/bin/env bash
# Makes the environments of the rivals under the folder $2 with the Python of geobatch's environment $1:
#   benchmarks/rivals/setup.sh .venv .rivals
# They get the same build of torch, where they need one, and the same releases of Zarr and NumPy as geobatch's environment.
set -euo pipefail
home="$1" rivals="$2"
alike() { "$home/bin/python" -c "import importlib.metadata as m; print(*(f'{n}=={m.version(n)}' for n in '$1'.split()))"; }

make_environment() {
    local folder="$rivals/$1" same="$2"
    shift 2
    [ -e "$folder/complete" ] && return
    "$home/bin/python" -m venv --clear "$folder"
    # shellcheck disable=SC2046
    "$folder/bin/pip" install --quiet $(alike "$same") "$@"
    touch "$folder/complete"
}

make_environment monai 'torch zarr numpy' monai==1.6.1
make_environment ray_data 'torch zarr numpy' 'ray[data]==2.60.0'
make_environment mdio 'zarr numpy' multidimio==1.1.3
