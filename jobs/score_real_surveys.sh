#!/usr/bin/env bash
# Real surveys through the whole line: ingest, score with the demo's bundle, export, report.
#     jobs/score_real_surveys.sh DATA_FOLDER OUTPUT_FOLDER [BUNDLE]
set -euo pipefail
data="$1" out="$2" bundle="${3:-demo-output/bundle}"
geobatch="${GEOBATCH:-.venv/bin/geobatch}"

declare -A attribution=(
    [f3]="Netherlands F3, dGB Earth Sciences and TNO, CC BY-SA 3.0"
    [f3-ebcidctest]="Netherlands F3, dGB Earth Sciences and TNO, CC BY-SA 3.0"
    [penobscot_xl1155]="Penobscot 3D, Nova Scotia Department of Energy and dGB Earth Sciences, CC BY-SA 3.0"
)
for file in segy/f3.sgy segy/f3-ebcidctest.sgy penobscot/penobscot_xl1155.sgy; do
    name="$(basename "$file" .sgy)"
    "$geobatch" ingest "$data/subsurface/$file" "$out/$name/survey" --overwrite \
        --set attribution="${attribution[$name]}" >/dev/null
    "$geobatch" inspect "$out/$name/survey"
    "$geobatch" run jobs/score_synthetic.yaml --set "survey=$out/$name/survey" --set "bundle=$bundle" \
        --set "output=$out/$name/scored" >/dev/null
    "$geobatch" export "$out/$name/scored" "$out/$name/faults.sgy" --variable probability:fault --overwrite >/dev/null
    "$geobatch" report "$out/$name/scored" --to "$out/$name/report.html"
done

# A velocity cube in depth: it ingests, and scoring refuses it with the reason.
name=volve10-migvel-depth-sub3d
"$geobatch" ingest "$data/subsurface/segy/$name.sgy" "$out/$name/survey" --overwrite >/dev/null
if "$geobatch" run jobs/score_synthetic.yaml --set "survey=$out/$name/survey" --set "bundle=$bundle" \
    --set "output=$out/$name/scored"; then
    echo "a velocity cube was scored" >&2
    exit 1
fi
