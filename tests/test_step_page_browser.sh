#!/usr/bin/env bash
# The stepper's page in a browser without a window: all of it is used once, wide and narrow, light and dark, and no error may occur.
# Argument: the build folder.
set -euo pipefail

source_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tests="${1:-build}/bin/hedgehog_tests"
browser="$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)"
[ -n "$browser" ] || { echo "skipped: no chromium"; exit 77; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/pages" "$work/profile"
HEDGEHOG_STEP_PAGES="$work/pages" "$tests" -tc="step page: written for the browser" >"$work/log" || { cat "$work/log"; exit 1; }

# open <file> <options…>: the page as it is in the end; the profile is thrown away, and the sandbox needs rights that a container has not
open() {
  local file="$1"
  shift
  HOME="$work/profile" timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/profile" \
    --virtual-time-budget=60000 "$@" --dump-dom "file://$file" 2>"$work/browser.err"
}

# a window cannot be as narrow as a telephone, a frame can
cat >"$work/narrow.html" <<'HTML'
<!doctype html><iframe src="tested.html" width="400" height="900"></iframe>
<script>
addEventListener("message", event => {
  const verdict = document.createElement("p");
  verdict.id = "verdict";
  verdict.textContent = event.data;
  document.body.append(verdict);
});
</script>
HTML

failures=0
# run <name> <file> <options…>
run() {
  local name="$1" verdict
  shift
  verdict="$(open "$@" | grep -o '<p id="verdict">.*</p>' | sed 's/<[^>]*>//g' || true)"
  echo "$name: ${verdict:-FAILED: no verdict}"
  case "$verdict" in passed*) ;; *) failures=$((failures + 1)) ;; esac
}
for page in "$work"/pages/*.html; do
  name="$(basename "$page")"
  # the self test goes before everything else, so that it sees every error
  {
    sed '/<head>/q' "$page"
    echo "<script>"
    cat "$source_dir/tests/step_page_self_test.js"
    echo "</script>"
    sed '1,/<head>/d' "$page"
  } >"$work/tested.html"
  run "$name" "$work/tested.html" --window-size=1200,900
  case "$name" in gpt.html | kinks.html) run "$name, narrow" "$work/narrow.html" --window-size=1200,900 ;; esac
  [ "$name" != gpt.html ] || run "$name, dark" "$work/tested.html" --window-size=1200,900 --force-dark-mode
done
[ "$failures" -eq 0 ] || { tail -n 5 "$work/browser.err"; echo "$failures runs failed"; exit 1; }
