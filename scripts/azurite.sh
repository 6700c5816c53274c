#!/bin/sh
# Azurite, the emulator of Azure Blob storage, for the tests that use it.
#
#   scripts/azurite.sh install    installs it with npm into node_modules/ (ignored by git)
#   scripts/azurite.sh test       installs it if need be and runs the tests on it
#   scripts/azurite.sh start      installs it if need be and serves on port 10000 until Ctrl-C
set -eu
cd "$(dirname "$0")/.."

install() {
    [ -x node_modules/.bin/azurite-blob ] && return
    command -v npm >/dev/null || { echo "azurite.sh: npm is not installed" >&2; exit 1; }
    npm install --no-save --no-package-lock --no-audit --no-fund azurite@3
}

case "${1:-}" in
    install) install ;;
    test) install; exec python -m pytest -k azure tests/storage tests/sources ;;
    start) install; exec node_modules/.bin/azurite-blob --blobHost 127.0.0.1 --inMemoryPersistence --skipApiVersionCheck ;;
    *) echo "usage: scripts/azurite.sh install|test|start" >&2; exit 2 ;;
esac
