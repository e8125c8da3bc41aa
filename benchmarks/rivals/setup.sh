#!/usr/bin/env bash
# Makes the environments of the rivals under the folder $2 with the Python of geobatch's environment $1:
#   benchmarks/rivals/setup.sh .venv .rivals
# They get the same build of torch, and the same releases of Zarr and NumPy, as geobatch's environment has.
set -euo pipefail
home="$1" rivals="$2"
alike() { "$home/bin/python" -c "import importlib.metadata as m; print(*(f'{n}=={m.version(n)}' for n in '$1'.split()))"; }

make_environment() {
    local folder="$rivals/$1"
    shift
    [ -e "$folder/complete" ] && return
    "$home/bin/python" -m venv --clear "$folder"
    # shellcheck disable=SC2046
    "$folder/bin/pip" install --quiet $(alike "torch zarr numpy") "$@"
    touch "$folder/complete"
}

make_environment monai monai==1.6.1
make_environment ray_data 'ray[data]==2.60.0'
