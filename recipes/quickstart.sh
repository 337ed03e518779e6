#!/usr/bin/env bash
# From nothing to a score: prepare the embedded corpus, train a small model on the CPU or GPU, translate and score.
# recipes/quickstart.sh [--data DIR] [--runs DIR] [--cpu]; safe to interrupt and to repeat.
set -euo pipefail

root="$(CDPATH="" cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)"
corpus=quickstart model=pervasive_quickstart
data=() runs=() device=()

while (($#)); do
    case "$1" in
        --data | --runs)
            [[ $# -ge 2 && -n $2 ]] || { echo "error: $1 needs a folder; see $0 --help" >&2; exit 2; }
            if [[ $1 == --data ]]; then data=(--data "$2"); else runs=(--runs "$2"); fi
            shift 2
            ;;
        --cpu)
            device=(--cpu)
            shift
            ;;
        -h | --help)
            echo "usage: recipes/quickstart.sh [--data DIR] [--runs DIR] [--cpu]"
            echo
            echo "Prepare the corpus $corpus, train the model $model on it, translate its test set"
            echo "and print the BLEU score. Safe to interrupt and to repeat: finished steps are not done again."
            exit 0
            ;;
        *)
            echo "error: unknown option $1; known: --data DIR, --runs DIR, --cpu" >&2
            exit 2
            ;;
    esac
done

step() {
    printf '\n[%s of 3, %d:%02d] %s\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)) "$2"
}

SECONDS=0
step 1 "Prepare the corpus: German numbers, dates, times and prices with their English translations"
"$root/recipes/prepare.sh" "$corpus" ${data[@]+"${data[@]}"}
step 2 "Train $model; interrupted, it resumes when called again"
"$root/recipes/train.sh" "$corpus" "$model" ${data[@]+"${data[@]}"} ${runs[@]+"${runs[@]}"} ${device[@]+"${device[@]}"}
step 3 "Translate the test set and score it"
score="$(mktemp)"
trap 'rm -f -- "$score"' EXIT
"$root/recipes/evaluate.sh" "$corpus" "$model" ${data[@]+"${data[@]}"} ${runs[@]+"${runs[@]}"} ${device[@]+"${device[@]}"} | tee "$score" | sed '$d'
printf '\nThe three steps took %d:%02d.\n' $((SECONDS / 60)) $((SECONDS % 60))
tail -n 1 "$score"
